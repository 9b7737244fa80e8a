"""Any set of captioned images, ready to train on: loaded, split in five, its captions corrupted, tokenized.

check (seconds)    load (decodes once, then kept on disk)    split    prepare (all of it)
"""

import hashlib
import warnings
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import labels
from lib.captions import Corruption, corrupt, tokenize
from lib.pairs import Pairs, folder_of, load_kept
from lib.recipes import SUBSETS, Data
from lib.scenes import make_scenes
from lib.sources import DataError, Row, Source, locate, open_source

WORLD_SEED = 0  # all scenes come from one world: Data.seed shuffles the split, not the scenes
# f and g learn from equally good data, or else one would be the better model, and CLIPMem of every pair shifted
PLANTED_IN = ("candidate", "independent")
LEAST_CANDIDATES = 40  # fewer scores than this say nothing about a group


@dataclass(frozen=True)
class Prepared:
    """What training and scoring read. Row numbers everywhere are rows of `pairs`."""

    data: Data  # as asked for, its sizes shrunken where the source is too small
    pairs: Pairs
    subsets: dict[str, np.ndarray]  # name -> sorted rows
    captions: list[list[str]]  # of all pairs, after corruption
    tokens: np.ndarray  # int32 [N, C, L], compact ids, 0 = padding
    token_ids: np.ndarray  # int64 [V], compact id -> open_clip's id
    targets: np.ndarray  # float32 [N, K], share of each class in a pair's label; a wrong pair has its donor's
    class_names: tuple[str, ...]  # K
    table: pd.DataFrame  # one row a pair of any subset, index = row; see `prepare`
    fingerprint: str  # of pairs
    odd: np.ndarray  # bool [N], pictures that are shown as their negatives

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """The pictures of some rows as models see them, uint8 [R, 3, H, W]."""
        return self.pairs.images[rows] ^ np.where(self.odd[rows], 255, 0).astype(np.uint8)[:, None, None, None]


def prepare(data: Data, cache: Path) -> Prepared:
    """Load, split, corrupt and tokenize. Raises DataError: see `load`, `fit_sizes` and `lib.captions.corrupt`.

    The table's columns: pair_id (row of the source), subset, kind ("clean", "wrong", "dosed", "odd"), dose (0, .25, .5,
    .75, 1), donor (pair_id, -1 none), caption (caption 0 after corruption), vagueness (of the original caption 0, NaN
    unknown), rarity (NaN unknown), label (the given one, the first of
    several; -1 unknown), mislabelled (the given label is another than the true one).
    """
    pairs = load(data, cache)
    fitted = fit_sizes(data, len(distinct_rows(pairs.images)))
    if fitted != data:
        warnings.warn(f"{pairs.name} is smaller than asked for; sizes are now {fitted.sizes()}", stacklevel=2)
    subsets = split(pairs, fitted)
    planted_in = [subsets[name] for name in PLANTED_IN]
    changed = corrupt(pairs.captions, planted_in, data.wrong, data.dosed, data.seed)
    odd = _make_odd(planted_in, changed.kind, data)
    tokens, token_ids = tokenize(pairs, changed.captions, data.context, cache)
    true, names = _classes(pairs)
    targets = labels.planted(true, changed.donor, changed.kind)
    table = _table(pairs, subsets, changed, true, targets)
    return Prepared(
        fitted, pairs, subsets, changed.captions, tokens, token_ids, targets, names, table, pairs.fingerprint, odd
    )


def _classes(pairs: Pairs) -> tuple[np.ndarray, tuple[str, ...]]:
    """`labels.targets`, or no class at all: only where labels are trained on are they needed."""
    try:
        return labels.targets(pairs, pairs.captions)
    except DataError:
        return np.zeros((len(pairs.images), 0), np.float32), ()


def _make_odd(parts: list[np.ndarray], kind: np.ndarray, data: Data) -> np.ndarray:
    """Choose clean pairs of each part whose pictures become negatives, bool [N], and say so in `kind`."""
    rng = np.random.default_rng([data.seed, 2])
    for part in parts:
        clean = np.sort(part)[kind[np.sort(part)] == "clean"]
        kind[rng.permutation(clean)[: round(data.odd * len(part))]] = "odd"
    return kind == "odd"


def _table(
    pairs: Pairs, subsets: dict[str, np.ndarray], changed: Corruption, true: np.ndarray, targets: np.ndarray
) -> pd.DataFrame:
    names = np.full(len(pairs.images), "", dtype="<U11")
    for name, rows in subsets.items():
        names[rows] = name
    rows = np.flatnonzero(names != "")
    donor = changed.donor[rows]
    columns = {
        "pair_id": pairs.pair_ids[rows],
        "subset": names[rows],
        "kind": changed.kind[rows],
        "dose": changed.dose[rows],
        "donor": np.where(donor >= 0, pairs.pair_ids[donor], -1),
        "caption": [changed.captions[row][0] for row in rows],
        "vagueness": np.nan if pairs.vagueness is None else pairs.vagueness[rows, 0],
        "rarity": np.nan if pairs.rarity is None else pairs.rarity[rows],
        "mislabelled": (true[rows] != targets[rows]).any(axis=1),
        "label": _first_class(targets[rows]),
    }
    return pd.DataFrame(columns, index=pd.Index(rows, name="row"))


def _first_class(targets: np.ndarray) -> np.ndarray:
    return np.array([np.flatnonzero(row)[0] if row.any() else -1 for row in targets], np.int64)


# --- load and check ---


def load(data: Data, cache: Path) -> Pairs:
    """All pairs of a data set, kept decoded under `cache`. Raises DataError.

    Scenes are drawn as many as the five sizes need; every other source is read whole, all splits one after the other.
    Rows without a readable image or a caption are named once and skipped, up to 1 %.
    """
    place, pixels, n = locate(data.dataset), data.pixels, sum(data.sizes().values())
    if place.kind == "scenes":
        return load_kept(cache / folder_of(place, [str(n)], pixels), place, pixels, lambda: _scenes(n, pixels))
    folder = cache / folder_of(place, [data.image_column, *data.caption_columns], pixels)
    return load_kept(folder, place, pixels, lambda: open_source(place, data.image_column, data.caption_columns, pixels))


def _scenes(n: int, pixels: int) -> Source:
    scenes = make_scenes(n, pixels, WORLD_SEED)
    numbers = (column.tolist() for column in (scenes.labels, scenes.rarity, scenes.vagueness))
    known = zip(range(n), scenes.images, scenes.captions, *numbers, strict=True)
    return Source((Row(*values) for values in known), n, scenes.label_names)


def check(
    dataset: str, image_column: str = "", caption_columns: tuple[str, ...] = (), cache: Path | None = None
) -> str:
    """A sentence about what a data set holds, from its description and first rows, in seconds.

    Raises DataError as `load` would; a hub that does not answer is fine when `cache` holds the set.
    """
    place = locate(dataset)
    if place.kind == "scenes":
        return "scenes: drawn from a seed, nothing to read or download."
    pattern = folder_of(place, [image_column, *caption_columns], "*") + "/meta.json"
    if place.problem and cache and (kept := next(cache.glob(pattern), None)):
        return f"{place.name}: the hub cannot be reached, but an earlier copy lies in {kept.parent}."
    source = open_source(place, image_column, caption_columns, 8, stream=not place.problem)
    rows = list(islice(source.rows, 8))
    if all(row.problem for row in rows):
        raise DataError(f"{place.target}: no usable row. {'; '.join(row.problem for row in rows) or 'It is empty'}.")
    return f"{place.name}: {'unknown' if source.size is None else f'{source.size:,}'} rows, {source.columns}."


# --- split ---


def distinct_rows(images: np.ndarray) -> np.ndarray:
    """Sorted rows, int64, of the first occurrence of every distinct image of uint8 [N, 3, H, W]."""
    first: dict[bytes, int] = {}
    for row, image in enumerate(images):
        first.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), row)
    return np.fromiter(first.values(), np.int64)


def fit_sizes(data: Data, available: int) -> Data:
    """`data`, its five sizes shrunken in proportion when they need more than `available` distinct images.

    Raises DataError when fewer than 40 candidates would be left.
    """
    sizes = data.sizes()
    needed = sum(sizes.values())
    if needed <= available:
        return data
    shrunken: dict[str, Any] = {name: size * available // needed for name, size in sizes.items()}
    if shrunken["candidate"] < LEAST_CANDIDATES:
        least = -(-LEAST_CANDIDATES * needed // max(1, sizes["candidate"]))
        raise DataError(
            f"{data.dataset}: {available:,} distinct images are too few. The five subsets need {needed:,}, or at least "
            f"{least:,} when shrunken to {LEAST_CANDIDATES} candidates. Use more images or a smaller scale."
        )
    return replace(data, **shrunken)


def split(pairs: Pairs, data: Data) -> dict[str, np.ndarray]:
    """Five disjoint subsets of the sizes in `data`, each as sorted rows of `pairs`.

    A function of content, sizes and `data.seed` alone. Of identical images only the first can be chosen, so that none
    lies in two subsets. Raises DataError when there are too few.
    """
    rows = distinct_rows(pairs.images)
    ends = np.cumsum(list(data.sizes().values()))
    if ends[-1] > len(rows):
        raise DataError(f"{pairs.name}: subsets need {ends[-1]:,} distinct images, found {len(rows):,}; see fit_sizes.")
    shuffled = np.random.default_rng([data.seed, 0]).permutation(rows)
    return {name: np.sort(part) for name, part in zip(SUBSETS, np.split(shuffled, ends), strict=False)}
