"""A data set, ready to train on: loaded (decoded once, then kept in the store), split, corrupted, tokenized."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from lib import store
from lib.captions import Corruption, DataError, compact, corrupt, encode
from lib.decode import Row, keep, read_batches, read_rows, square, tell_broken
from lib.recipes import CORRUPTED, SUBSETS, Data
from lib.scenes import make_scenes
from lib.sources import find_columns, locate, open_rows, picture_files

FORMAT = 1  # raise it when decoding changes
WORLD_SEED = 0  # all scenes come from one world: Data.seed shuffles the split, not the scenes
ENDLESS = ("hub", "webdataset")  # of these are read as many pictures as are needed: they may be millions
FOLDERS = ("imagefolder", "webdataset")
FIRST_ROWS = 1000  # what a check reads at most; it mostly ends after three
LEAST_CANDIDATES = 40  # fewer scores than this say nothing about a group


@dataclass(frozen=True)
class Pairs:
    """N images with their captions, in the order of the source; the place here is a pair's row everywhere."""

    images: np.ndarray  # uint8 [N, 3, pixels, pixels], a private memory map: writing to it changes no file
    captions: list[list[str]]  # N lists of one or more captions; the first one is caption 0
    ids: np.ndarray  # int32 [N, C, context], open_clip's token ids of the captions
    classes: list[list[int]]  # N lists of the image's class ids; empty: none known
    class_names: dict[int, str]  # where the source names them
    table: pd.DataFrame  # [N] pair_id, vagueness, rarity as in `Prepared.table`; skipped rows leave gaps in pair_id
    fingerprint: str  # SHA-256 of the content


@dataclass(frozen=True)
class Prepared:
    """What training and scoring read; row numbers are those of `Pairs`."""

    data: Data  # as asked for, with smaller sizes where the source is too small
    subsets: dict[str, np.ndarray]  # name -> sorted rows
    images: np.ndarray  # uint8 [N, 3, pixels, pixels], as models see them: some are inverted
    captions: list[list[str]]  # after corruption
    tokens: np.ndarray  # int32 [N, C, L] of these captions, compact ids, 0 = padding
    token_ids: np.ndarray  # int64 [V], compact id -> open_clip's id
    true_targets: np.ndarray  # float32 [N, K], share of each class in a pair's label; 0 everywhere: none known
    targets: np.ndarray  # float32 [N, K], the same with swapped labels: a swapped pair has its donor's
    class_names: tuple[str, ...]  # K
    pair_ids: np.ndarray  # int64 [N]
    table: pd.DataFrame  # one row per pair of any subset, index = row; see `prepare`
    fingerprint: str  # of `Pairs`

    def half(self, name: str, seed: int) -> np.ndarray:
        """Return the sorted rows of the pool that f of a seed trains on ("candidate") or its g ("independent").

        Chance decides, afresh for every seed, and equally often within each kind of corruption.
        """
        rows, rng = self.subsets["pool"], np.random.default_rng([seed, 4])
        kinds = self.table.loc[rows, ["corruption", "share_swapped"]]
        order = np.lexsort([rng.random(len(rows)), kinds["share_swapped"], kinds["corruption"]])
        return np.sort(rows[order[(name == "independent") ^ int(rng.integers(2)) :: 2]])


def check(dataset: str, image: str = "", captions: Sequence[str] = ()) -> str:
    """Return a sentence about what a data set holds, from its description and first rows, without reading it all. Raise
    DataError where it cannot be used, as far as these tell."""
    if dataset == "scenes":
        return "scenes: drawn from a seed, nothing to read or download"
    rows, (_, where) = open_rows(dataset), locate(dataset)
    columns = find_columns(rows, where, image, captions)
    texts: set[str] = set()
    for row in read_rows(rows.take(FIRST_ROWS), where, columns, partial(square, pixels=8)):
        texts.add(" ".join(row.captions))
        if len(texts) > 2:
            return f"{where}: pictures in '{columns.image}', captions in {', '.join(columns.captions)}"
    said = f"{where}: fewer than 3 different captions in the first {FIRST_ROWS:,} rows; shuffle them if they are sorted"
    raise DataError(f"{said}. CLIP needs captions that tell pictures apart.")


@lru_cache(maxsize=8)  # notebook 06 compares as many
def prepare(data: Data) -> Prepared:
    """Load, split, corrupt and tokenize; the last few data sets stay in memory.

    The table's columns: pair_id (row of the source), subset, corruption ("clean", "swapped", "partly_swapped",
    "inverted"), share_swapped (of the words: 0, .25, .5, .75, 1), donor (pair_id, -1 none), caption (caption 0 after
    corruption), vagueness (of the original caption 0) and rarity (in [0, 1], 1 = vaguest, rarest; NaN unknown),
    mislabelled (the given label differs from the true one), label (index of the first given class, -1 unknown). Raise
    DataError where the data set cannot be read, is too small, or has captions that are too much alike.
    """
    pairs = load(data)
    data = fit_sizes(data, len(pairs.images))
    subsets = split(len(pairs.images), data)
    shares = (data.swapped, data.partly_swapped, data.inverted)
    made = corrupt(pairs.captions, [subsets[name] for name in CORRUPTED], shares, data.seed)
    inverted = made.corruption == "inverted"
    pairs.images[inverted] = 255 - pairs.images[inverted]
    changed = [row for row, (old, new) in enumerate(zip(pairs.captions, made.captions, strict=True)) if old != new]
    ids = pairs.ids.copy()
    ids[changed] = encode([made.captions[row] for row in changed], ids.shape[1], data.context)
    tokens, token_ids = compact(ids, pairs.ids)
    true_targets, names = class_shares(pairs)
    targets, swapped = true_targets.copy(), made.corruption == "swapped"
    targets[swapped] = true_targets[made.donor[swapped]]
    return Prepared(
        data=data,
        subsets=subsets,
        images=pairs.images,
        captions=made.captions,
        tokens=tokens,
        token_ids=token_ids,
        true_targets=true_targets,
        targets=targets,
        class_names=names,
        pair_ids=pairs.table["pair_id"].to_numpy(),
        table=_table(pairs, subsets, made, true_targets, targets),
        fingerprint=pairs.fingerprint,
    )


def _table(pairs: Pairs, subsets: dict[str, np.ndarray], made: Corruption, true: np.ndarray, given: np.ndarray) -> Any:
    subset = pd.Series({row: name for name, rows in subsets.items() for row in rows.tolist()}).sort_index()
    table = pairs.table.assign(
        subset=subset,
        corruption=made.corruption,
        share_swapped=made.share_swapped,
        donor=np.where(made.donor >= 0, pairs.table["pair_id"].to_numpy()[made.donor], -1),
        caption=[own[0] for own in made.captions],
        mislabelled=(true != given).any(axis=1),
        label=np.where(given.any(axis=1), (given > 0).argmax(axis=1), -1) if given.shape[1] else -1,
    )
    order = "pair_id subset corruption share_swapped donor caption vagueness rarity mislabelled label"
    return table.loc[subset.index, order.split()].rename_axis("row")


def class_shares(pairs: Pairs) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the share of each class in every image's label, float32 [N, K] with rows that sum to 1, or to 0 where no
    class is known; and the K names. K is 0 for a single class, or where classes only number the images."""
    counts = list(map(len, pairs.classes))
    ids, places = np.unique([one for own in pairs.classes for one in own], return_inverse=True)
    if not 1 < len(ids) <= len(counts) / 2:
        return np.zeros((len(counts), 0), np.float32), ()
    held = np.zeros((len(counts), len(ids)), np.float32)
    held[np.repeat(np.arange(len(counts)), counts), places] = 1
    names = tuple(pairs.class_names.get(one, f"class {one}") for one in ids.tolist())
    return held / np.maximum(1, held.sum(axis=1, keepdims=True)), names


def fit_sizes(data: Data, available: int) -> Data:
    """Return `data` with its five sizes shrunk in proportion where they need more than the images that are available.
    Raise DataError where fewer than LEAST_CANDIDATES candidates (half of the pool) are left."""
    sizes, needed = data.sizes(), sum(data.sizes().values())
    if needed <= available:
        return data
    shrunk: dict[str, Any] = {name: size * available // needed for name, size in sizes.items()}
    if shrunk["pool"] < 2 * LEAST_CANDIDATES:
        least = -(-2 * LEAST_CANDIDATES * needed // max(1, sizes["pool"]))
        raise DataError(
            f"{data.dataset}: {available:,} distinct images are too few. The five subsets need {needed:,}, or at least "
            f"{least:,} when shrunk to {LEAST_CANDIDATES} candidates. Use more images or a smaller scale."
        )
    warnings.warn(f"{data.dataset} is smaller than asked for; its sizes are now {shrunk}", stacklevel=3)
    return replace(data, **shrunk)


def split(count: int, data: Data) -> dict[str, np.ndarray]:
    """Return five disjoint subsets of `count` rows, of the sizes in `data`, each sorted; `data.seed` shuffles."""
    ends = np.cumsum(list(data.sizes().values()))
    parts = np.split(np.random.default_rng([data.seed, 0]).permutation(count), ends)
    return {name: np.sort(part) for name, part in zip(SUBSETS, parts, strict=False)}  # the last part is left over


def load(data: Data) -> Pairs:
    """Return all pairs of a data set, decoded once and then kept in the store. Raise DataError.

    Scenes are drawn, and pictures from the Hub or from shards are read, as many as the five subsets need; every other
    data set is read whole. Of images that are equal pixel by pixel only the first is kept; where all rows have one
    caption each, it gets the captions of all of them. What an interrupted call has read is not read again.
    """
    (kind, where), count = locate(data.dataset), sum(data.sizes().values())
    if kind == "scenes":
        code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("scenes/*.py")))
        source: list[Any] = [hashlib.sha256(code).hexdigest(), count, WORLD_SEED]  # the same in every copy
    else:
        source = identity(data.dataset, data.image_column) + [count] * (kind in ENDLESS)

    def build(folder: Path) -> None:
        if kind == "scenes":
            made = make_scenes(count, data.pixels, WORLD_SEED)
            drawn = zip(range(count), made.images, made.captions, made.labels[:, None].tolist(), strict=True)
            rows = [(list(map(Row._make, drawn)), {"row": count})]
            keep(folder, lambda place: [] if place else rows, data, made.label_names, made.rarity, made.vagueness[:, 0])
            return
        opened = open_rows(data.dataset)
        columns = find_columns(opened, where, data.image_column, data.caption_columns)
        label = opened.features.get(columns.label)
        names = getattr(getattr(label, "feature", label), "names", None) or ()
        read = partial(read_batches, opened, where, columns, partial(square, pixels=data.pixels))
        tell_broken(where, keep(folder, read, data, names, most=count if kind in ENDLESS else None))

    parts = [FORMAT, source, data.pixels, data.context, data.image_column, data.caption_columns]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = store.get_or_build("data", key, build, {"dataset": data.dataset, "pixels": data.pixels})
    table, content = pq.read_table(folder / "table.parquet"), json.loads((folder / "content.json").read_text())
    return Pairs(
        images=np.memmap(folder / "images.bin", np.uint8, "c", shape=(len(table), 3, data.pixels, data.pixels)),
        captions=table["captions"].to_pylist(),
        ids=np.load(folder / "ids.npy"),
        classes=table["classes"].to_pylist(),
        class_names={int(number): name for number, name in content["class_names"].items()},
        table=table.select(["pair_id", "vagueness", "rarity"]).to_pandas(),
        fingerprint=content["fingerprint"],
    )


def identity(dataset: str, image: str) -> list[Any]:
    """Return what changes when a data set of files does, or one on the Hub; `image` names its picture column, or ""."""
    kind, where = locate(dataset)
    if kind == "hub":  # what was read of it stays, also without a network
        return [where]
    named = [] if kind in FOLDERS or where.startswith("hf:") else picture_files(where, image)
    return [where, _state(Path(where).rglob("*") if kind in FOLDERS else [Path(where), *named])]


def _state(files: Iterable[Path]) -> list[str]:
    """Return what changes when one of the files does."""
    return [f"{file}|{file.stat().st_size}|{file.stat().st_mtime_ns}" for file in sorted(files) if file.is_file()]
