"""A data set, ready to train on: loaded, split into five subsets, corrupted, tokenized.

load (decoded once, kept in the store)    split    prepare (all of it)
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from lib import store
from lib.captions import Corruption, DataError, compact, corrupt, encode
from lib.recipes import SUBSETS, Data
from lib.scenes import make_scenes
from lib.sources import Row, find_columns, locate, open_rows, read_rows

FORMAT = 1  # raise it when decoding changes
WORLD_SEED = 0  # all scenes come from one world: Data.seed shuffles the split, not the scenes
# f and g must learn from equally good data, or one of them would be the better model and every CLIPMem be shifted
CORRUPTED_SUBSETS = ("candidate", "independent")
LEAST_CANDIDATES = 40  # fewer scores than this say nothing about a group


@dataclass(frozen=True)
class Pairs:
    """N images with their captions, in the order of the source; the place here is a pair's row everywhere."""

    images: np.ndarray  # uint8 [N, 3, pixels, pixels], a private memory map: writing to it changes no file
    captions: list[list[str]]  # N lists of one or more captions; the first one is caption 0
    ids: np.ndarray  # int32 [N, C, context], open_clip's token ids of the captions
    pair_ids: np.ndarray  # int64 [N], row of the source: skipped rows leave gaps
    classes: list[list[int]]  # N lists of the image's class ids; empty: none known
    class_names: dict[int, str]  # where the source names them
    rarity: np.ndarray  # float64 [N] in [0, 1], 1 = rarest; NaN unknown
    vagueness: np.ndarray  # float64 [N] in [0, 1], of caption 0, 1 = vaguest; NaN unknown
    fingerprint: str  # SHA-256 of the content


@dataclass(frozen=True)
class Prepared:
    """What training and scoring read; row numbers are those of `Pairs`."""

    data: Data  # as asked for, with smaller sizes where the source is too small
    subsets: dict[str, np.ndarray]  # name -> sorted rows
    images: np.ndarray  # uint8 [N, 3, pixels, pixels], as models see them: some are inverted
    inverted: np.ndarray  # bool [N], which ones
    captions: list[list[str]]  # after corruption
    tokens: np.ndarray  # int32 [N, C, L] of these captions, compact ids, 0 = padding
    token_ids: np.ndarray  # int64 [V], compact id -> open_clip's id
    true_targets: np.ndarray  # float32 [N, K], share of each class in a pair's label; 0 everywhere: none known
    targets: np.ndarray  # float32 [N, K], the same with swapped labels: a swapped pair has its donor's
    class_names: tuple[str, ...]  # K
    pair_ids: np.ndarray  # int64 [N]
    table: pd.DataFrame  # one row per pair of any subset, index = row; see `prepare`
    fingerprint: str  # of `Pairs`

    def originals(self, rows: np.ndarray) -> np.ndarray:
        """Return the images of some rows before any was inverted, uint8 [R, 3, H, W]."""
        return self.images[rows] ^ np.where(self.inverted[rows], 255, 0).astype(np.uint8)[:, None, None, None]


def prepare(data: Data) -> Prepared:
    """Load, split, corrupt and tokenize.

    The table's columns: pair_id (row of the source), subset, corruption ("clean", "swapped", "partly_swapped",
    "inverted"), share_swapped (of the words: 0, .25, .5, .75, 1), donor (pair_id, -1 none), caption (caption 0 after
    corruption), vagueness (of the original caption 0), rarity (both NaN where unknown), mislabelled (the given label
    differs from the true one), label (index of the first given class, -1 unknown).

    Raises:
        DataError: the data set cannot be read, is too small, or has captions that are too much alike.
    """
    pairs = load(data)
    data = fit_sizes(data, len(pairs.images))
    subsets = split(len(pairs.images), data)
    shares = (data.swapped, data.partly_swapped, data.inverted)
    made = corrupt(pairs.captions, [subsets[name] for name in CORRUPTED_SUBSETS], shares, data.seed)
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
        inverted=inverted,
        captions=made.captions,
        tokens=tokens,
        token_ids=token_ids,
        true_targets=true_targets,
        targets=targets,
        class_names=names,
        pair_ids=pairs.pair_ids,
        table=_table(pairs, subsets, made, true_targets, targets),
        fingerprint=pairs.fingerprint,
    )


def _table(pairs: Pairs, subsets: dict[str, np.ndarray], made: Corruption, true: np.ndarray, given: np.ndarray) -> Any:
    rows = np.concatenate(list(subsets.values()))
    columns = {
        "pair_id": pairs.pair_ids[rows],
        "subset": np.repeat(list(subsets), [len(part) for part in subsets.values()]),
        "corruption": made.corruption[rows],
        "share_swapped": made.share_swapped[rows],
        "donor": np.where(made.donor >= 0, pairs.pair_ids[made.donor], -1)[rows],
        "caption": [made.captions[row][0] for row in rows],
        "vagueness": pairs.vagueness[rows],
        "rarity": pairs.rarity[rows],
        "mislabelled": (true != given).any(axis=1)[rows],
        "label": np.where(given.any(axis=1), (given > 0).argmax(axis=1), -1)[rows] if given.shape[1] else -1,
    }
    return pd.DataFrame(columns, index=pd.Index(rows, name="row")).sort_index()


def class_shares(pairs: Pairs) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the share of each class in every image's label, float32 [N, K] with rows that sum to 1 or, where no class
    is known, to 0; and the K names. K is 0 where the data set has fewer than two classes."""
    ids = sorted({one for own in pairs.classes for one in own})
    held = np.zeros((len(pairs.classes), len(ids) if len(ids) > 1 else 0), np.float32)
    place = {one: k for k, one in enumerate(ids)}
    for row, own in enumerate(pairs.classes) if held.shape[1] else ():
        held[row, [place[one] for one in own]] = 1
    names = tuple(pairs.class_names.get(one, f"class {one}") for one in ids[: held.shape[1]])
    return held / np.maximum(1, held.sum(axis=1, keepdims=True)), names


# --- split ---


def fit_sizes(data: Data, available: int) -> Data:
    """Return `data` with its five sizes shrunk in proportion where they need more than the images that are available.

    Raises:
        DataError: fewer than LEAST_CANDIDATES candidates would be left.
    """
    sizes, needed = data.sizes(), sum(data.sizes().values())
    if needed <= available:
        return data
    shrunk: dict[str, Any] = {name: size * available // needed for name, size in sizes.items()}
    if shrunk["candidate"] < LEAST_CANDIDATES:
        least = -(-LEAST_CANDIDATES * needed // max(1, sizes["candidate"]))
        raise DataError(
            f"{data.dataset}: {available:,} distinct images are too few. The five subsets need {needed:,}, or at least "
            f"{least:,} when shrunk to {LEAST_CANDIDATES} candidates. Use more images or a smaller scale."
        )
    warnings.warn(f"{data.dataset} is smaller than asked for; its sizes are now {shrunk}", stacklevel=3)
    return replace(data, **shrunk)


def split(count: int, data: Data) -> dict[str, np.ndarray]:
    """Return five disjoint subsets of `count` rows, of the sizes in `data`, each sorted; `data.seed` shuffles."""
    shuffled = np.random.default_rng([data.seed, 0]).permutation(count)
    ends = np.cumsum(list(data.sizes().values()))
    return {name: np.sort(part) for name, part in zip(SUBSETS, np.split(shuffled, ends), strict=False)}


# --- in the store ---


def load(data: Data) -> Pairs:
    """Return all pairs of a data set, decoded once and then kept in the store. Raise DataError.

    Scenes are drawn as many as the five subsets need; every other data set is read whole. Of images that are equal
    pixel by pixel only the first is kept; where all rows have one caption each, it gets the captions of all of them.
    """
    kind, where = locate(data.dataset)
    if kind == "scenes":
        identity: list[Any] = [_state(Path(__file__).parent.glob("scene*.py")), sum(data.sizes().values()), WORLD_SEED]
    elif kind == "hub":
        identity = [where, *(file["filename"] for file in open_rows(data.dataset).cache_files)]
    else:
        identity = [where, _state(Path(where).rglob("*") if kind == "imagefolder" else [Path(where)])]

    def build(folder: Path) -> None:
        if kind == "scenes":
            scenes = make_scenes(sum(data.sizes().values()), data.pixels, WORLD_SEED)
            texts = zip(scenes.images, scenes.captions, scenes.labels.tolist(), strict=True)
            rows: Iterable[Row] = (Row(i, image, own, [label]) for i, (image, own, label) in enumerate(texts))
            _keep(folder, rows, data, scenes.label_names, scenes.rarity, scenes.vagueness[:, 0])
        else:
            opened = open_rows(data.dataset)
            columns = find_columns(opened, where, data.image_column, data.caption_columns)
            label = opened.features.get(columns.label)
            names = getattr(getattr(label, "feature", label), "names", None) or ()
            _keep(folder, read_rows(opened, where, columns, data.pixels), data, names)

    parts = [FORMAT, identity, data.pixels, data.context, data.image_column, data.caption_columns]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return _read(store.get_or_build("data", key, build, {"dataset": data.dataset, "pixels": data.pixels}), data.pixels)


def _state(files: Iterable[Path]) -> list[str]:
    """Return what changes when one of the files does."""
    return [f"{file}|{file.stat().st_size}|{file.stat().st_mtime_ns}" for file in sorted(files) if file.is_file()]


def _keep(folder: Path, rows: Iterable[Row], data: Data, names: Sequence[str], *truth: np.ndarray) -> None:
    """Write an entry of the store: images.bin, ids.npy, table.parquet, and about what they hold, content.json."""
    first: dict[bytes, int] = {}  # digest of an image -> its place
    kept: list[Row] = []
    again: list[tuple[int, list[str]]] = []  # rows whose image was there before: its place, their captions
    with store.atomic(folder / "images.bin") as temporary, temporary.open("wb") as file:
        for row in rows:
            place = first.setdefault(hashlib.sha256(row.image.tobytes()).digest(), len(kept))
            if place < len(kept):
                again.append((place, row.captions))
            else:
                file.write(row.image.tobytes())
                kept.append(row._replace(image=np.zeros(0)))
    captions = [row.captions for row in kept]
    if all(len(own) == 1 for own in (*captions, *(own for _, own in again))):
        for place, own in again:
            captions[place] = list(dict.fromkeys([*captions[place], *own]))
    classes, class_names = _numbered([row.labels for row in kept], names)
    columns: dict[str, list[Any]] = {"pair_id": [row.number for row in kept], "captions": captions, "classes": classes}
    for name, values in zip(("rarity", "vagueness"), truth or [np.full(len(kept), np.nan)] * 2, strict=True):
        columns[name] = values.astype(float).tolist()
    store.write_table(folder / "table.parquet", pd.DataFrame(columns))
    with store.atomic(folder / "ids.npy") as temporary, temporary.open("wb") as file:
        np.save(file, encode(captions, max(map(len, captions)), data.context))
    with (folder / "images.bin").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([columns, class_names], sort_keys=True).encode())
    store.write_json(folder / "content.json", {"class_names": class_names, "fingerprint": digest.hexdigest()})


def _numbered(labels: list[list[Any]], names: Sequence[str]) -> tuple[list[list[int]], dict[int, str]]:
    """Return class ids of the labels of each row, and the names of the ids: integers stay, all else is numbered."""
    values = {one for own in labels for one in own}
    if all(type(one) is int for one in values):
        return [[one for one in own if one >= 0] for own in labels], dict(enumerate(names))
    texts = sorted(map(str, values))
    return [[texts.index(str(one)) for one in own] for own in labels], dict(enumerate(texts))


def _read(folder: Path, pixels: int) -> Pairs:
    table, content = pq.read_table(folder / "table.parquet"), json.loads((folder / "content.json").read_text())
    return Pairs(
        images=np.memmap(folder / "images.bin", np.uint8, "c", shape=(len(table), 3, pixels, pixels)),
        captions=table["captions"].to_pylist(),
        ids=np.load(folder / "ids.npy"),
        pair_ids=table["pair_id"].to_numpy(),
        classes=table["classes"].to_pylist(),
        class_names={int(number): name for number, name in content["class_names"].items()},
        rarity=table["rarity"].to_numpy().astype(float),
        vagueness=table["vagueness"].to_numpy().astype(float),
        fingerprint=content["fingerprint"],
    )
