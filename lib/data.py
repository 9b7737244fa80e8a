"""A data set, ready to train on: read once into the store, split, corrupted, tokenized."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pandas as pd

from lib import photos, store
from lib.captions import MIN_WORDS, Corruption, compact, corrupt, encode
from lib.photos import DataError, Row
from lib.recipes import CORRUPTED, HALVES, SUBSETS, DataConfig, Recipe
from lib.scenes import SHAPES, Painted, make_scenes

FORMAT = 3  # raise it when decoding changes
WORLD_SEED = 0  # all scenes come from one world: DataConfig.seed shuffles the split, not the scenes
MIN_CANDIDATES = 40  # fewer scores than this say nothing about a group


@dataclass(frozen=True)
class RawPairs:
    """N images with their captions, in the order of the source; the position here is a pair's row everywhere."""

    images: np.ndarray  # uint8 [N, 3, pixels, pixels], a private memory map: writing to it changes no file
    captions: list[list[str]]  # N lists of one or more captions (of none in a labelled set); the first is caption 0
    ids: np.ndarray  # int32 [N, C, context], open_clip's token ids of the captions
    shares: np.ndarray  # float32 [N, K], share of each class in a pair's label; 0 everywhere: none known
    class_names: tuple[str, ...]  # K
    table: pd.DataFrame  # [N] pair_id (row of the source), and of scenes rarity and vagueness, else NaN
    fingerprint: str  # SHA-256 of the content
    said: str  # what was understood of the source, and what was left out


@dataclass(frozen=True)
class Dataset(RawPairs):
    """What training and scoring read: pairs split, corrupted and tokenized. `images` and `captions` are as models see
    them, after corruption; `table` has one row per pair of any subset, index = row, see `prepare`."""

    config: DataConfig  # as asked for, with smaller sizes where the source is too small
    subsets: dict[str, np.ndarray]  # name -> sorted rows
    originals: list[list[str]]  # captions before corruption
    tokens: np.ndarray  # int32 [N, C, L] of the captions, compact ids, 0 = padding
    token_ids: np.ndarray  # int64 [V], compact id -> open_clip's id
    targets: np.ndarray  # float32 [N, K], `shares` with swapped labels: a swapped pair has its donor's
    pair_ids: np.ndarray  # int64 [N]

    def half(self, name: str, seed: int) -> np.ndarray:
        """Return the sorted rows of the pool that f of a seed trains on ("candidate") or its g ("independent"): drawn
        afresh for every seed, as many of each corruption."""
        rows, rng = self.subsets["pool"], np.random.default_rng([seed, 4])
        kinds = self.table.loc[rows, ["corruption", "share_planned"]]
        order = np.lexsort([rng.random(len(rows)), kinds["share_planned"], kinds["corruption"]])
        return np.sort(rows[order[(name == "independent") ^ int(rng.integers(2)) :: 2]])

    def training_rows(self, recipe: Recipe, removed: Sequence[int] = ()) -> np.ndarray:
        """Return the rows that a recipe trains on, without those of `removed`."""
        parts = [self.half(n, recipe.seed) if n in HALVES else self.subsets[n] for n in recipe.trained_on]
        rows = np.concatenate(parts)
        return rows[~np.isin(rows, removed)]


PUBLISHED: dict[DataConfig, Dataset] = {}  # what stands for a data set while published scores are read


@lru_cache(maxsize=8)  # notebook 06 compares as many
def prepare(config: DataConfig) -> Dataset:
    """Load a data set, and return it ready to train on; the last few stay in memory. See `arrange`."""
    return PUBLISHED[config] if config in PUBLISHED else arrange(config, load(config))


def arrange(config: DataConfig, pairs: RawPairs) -> Dataset:
    """Split, corrupt and tokenize pairs that were loaded. The table's columns: pair_id, subset,
    corruption ("clean", "swapped", "partly_swapped", "inverted"), share_planned and share_swapped (see `Corruption`),
    donor (pair_id, -1 none), caption (0, after corruption), vagueness (of the original caption 0) and rarity (in [0,
    1]; NaN unknown), mislabelled (the given label is not the true one), label (first given class, -1 unknown). Raise
    DataError for an unreadable or too small set, ValueError for equal captions."""
    config = fit_sizes(config, len(pairs.images))
    subsets, shares = split(len(pairs.images), config), (config.swapped, config.partly_swapped, config.inverted)
    made = corrupt(pairs.captions, pairs.ids, [subsets[name] for name in CORRUPTED], shares, config.seed)
    inverted, swapped = made.corruption == "inverted", made.corruption == "swapped"
    pairs.images[inverted] = 255 - pairs.images[inverted]
    changed = [row for row, (old, new) in enumerate(zip(pairs.captions, made.captions, strict=True)) if old != new]
    ids = pairs.ids.copy()
    ids[changed] = encode([made.captions[row] for row in changed], ids.shape[1], config.context)
    tokens, token_ids = compact(ids, pairs.ids)
    targets = pairs.shares.copy()
    targets[swapped] = pairs.shares[made.donor[swapped]]
    known = vars(pairs) | {"ids": ids, "captions": made.captions, "table": _table(pairs, subsets, made, targets)}
    if made.short.any() and config.partly_swapped:
        known["said"] += f"; captions of fewer than {MIN_WORDS} words, not to be partly swapped: {made.short.sum():,}"
    known |= dict(config=config, subsets=subsets, originals=pairs.captions, tokens=tokens, token_ids=token_ids)
    return Dataset(**known, targets=targets, pair_ids=pairs.table["pair_id"].to_numpy())


def _table(pairs: RawPairs, subsets: dict[str, np.ndarray], made: Corruption, given: np.ndarray) -> pd.DataFrame:
    subset = pd.Series({row: name for name, rows in subsets.items() for row in rows.tolist()}).sort_index()
    known: dict[str, Any] = {"corruption": made.corruption, "caption": [own[0] for own in made.captions]}
    known |= {"share_planned": made.share_planned, "share_swapped": made.share_swapped}
    known["donor"] = np.where(made.donor >= 0, pairs.table["pair_id"].to_numpy()[made.donor], -1)
    known["label"] = np.where(given.any(axis=1), (given > 0).argmax(axis=1), -1) if given.shape[1] else -1
    table = pairs.table.assign(subset=subset, mislabelled=(pairs.shares != given).any(axis=1), **known)
    return table.loc[subset.index].rename_axis("row")


def fit_sizes(config: DataConfig, available: int) -> DataConfig:
    """Return `config` with its five sizes shrunk in proportion where they need more than the images that are available.
    Raise DataError where fewer than MIN_CANDIDATES candidates (half of the pool) are left."""
    sizes, needed = config.sizes(), sum(config.sizes().values())
    if needed <= available:
        return config
    shrunk: dict[str, Any] = {name: size * available // needed for name, size in sizes.items()}
    if shrunk["pool"] < 2 * MIN_CANDIDATES:
        enough = -(-2 * MIN_CANDIDATES * needed // max(1, sizes["pool"]))
        said = f"{config.dataset}: {available:,} distinct images are too few. The five subsets need {needed:,}, or"
        raise DataError(f"{said} {enough:,} if {MIN_CANDIDATES} candidates are enough. Use more, or a smaller scale.")
    warnings.warn(f"{config.dataset} is smaller than asked for; its sizes are now {shrunk}", stacklevel=3)
    return replace(config, **shrunk)


def split(count: int, config: DataConfig) -> dict[str, np.ndarray]:
    """Return five disjoint subsets of `count` rows, of the sizes in `config`, each sorted; `config.seed` shuffles."""
    ends, order = np.cumsum(list(config.sizes().values())), np.random.default_rng([config.seed, 0]).permutation(count)
    parts = np.split(np.roll(order, config.tenth * config.external) if config.tenth >= 0 else order, ends)
    return {name: np.sort(part) for name, part in zip(SUBSETS, parts, strict=False)}  # the last part is left over


def load(config: DataConfig) -> RawPairs:
    """Return all pairs of a data set, of scenes, shards and the Hub as many as are needed. Raise DataError."""
    count = sum(config.sizes().values())
    if config.dataset == "scenes":
        code = [store.digest(Path(__file__).with_name(f"scenes.{kind}")) for kind in ("py", "json")]
        return _stored(partial(_draw, count, config.pixels), config, [*code, count, WORLD_SEED])
    most = count if photos.endless(config.dataset) else None
    read = partial(_read, config, config.caption_columns, most)
    return _stored(read, config, [*photos.state(config.dataset), most])


def truth(data: Dataset) -> pd.DataFrame:
    """Return what may be published of a data set, for `stand_in`: of photographs no captions."""
    table = data.table[~data.table["subset"].isin(["test", "probe"])].drop(columns="caption")
    if data.config.dataset != "scenes":
        return table.assign(captions=data.tokens.shape[1])
    made, true = ([texts[row] for row in table.index] for texts in (data.captions, data.originals))
    return table.assign(captions=made, caption=[own[0] for own in made], true=[own[0] for own in true])


def stand_in(config: DataConfig, table: pd.DataFrame) -> Dataset:
    """Return what is published of a data set, for the rows of `table`: of scenes the captions, and the images, which
    are drawn when they are asked for; of photographs neither."""
    known, every = "true" in table, range(table.index.max() + 1)
    subsets = {name: table.index[table["subset"] == name].to_numpy() for name in SUBSETS}
    held = [[*own] for own in table["captions"]] if known else [[""]] * len(table)
    given, true = dict(zip(table.index, held, strict=True)), table.get("true", pd.Series(dtype=str))
    originals = [[text] for text in true.reindex(every, fill_value="")]
    ids = np.zeros((len(every), max(map(len, held)) if known else table["captions"].max(), config.context), np.int32)
    ids[table.index] = encode(held, ids.shape[1], config.context)
    tokens, token_ids = compact(ids, ids)
    shares, images = np.zeros((len(every), len(SHAPES) * known), np.float32), np.zeros((0, 0), np.uint8)
    if known:
        inverted = table.index[table["corruption"] == "inverted"]
        images = cast(np.ndarray, Painted(len(every), config.pixels, WORLD_SEED, inverted))
        shares[table.index, table["label"]] = 1
    pair_ids = table["pair_id"].reindex(every, fill_value=-1).to_numpy()
    said = "read from figures/" + "; the photographs are not here, so they are not shown" * (not known)
    pairs = images, [given.get(row, [""]) for row in every], ids, shares, SHAPES if known else (), table, "", said
    return Dataset(*pairs, config, subsets, originals, tokens, token_ids, shares, pair_ids)


def load_labelled(dataset: str, pixels: int) -> RawPairs:
    """Return all images of a data set with labels, such as Imagenette, and no captions. Raise DataError."""
    config = DataConfig(dataset, pixels)
    return _stored(partial(_read, config, None, None), config, ["labelled", *photos.state(dataset)])


Found = tuple[photos.Photos, Sequence[str], dict[str, np.ndarray]]  # images, names of the classes, truth by image


def _draw(count: int, pixels: int, file: BinaryIO) -> Found:
    made = make_scenes(count, pixels, WORLD_SEED)
    drawn = zip(range(count), made.images, made.captions, made.labels[:, None].tolist(), strict=True)
    found = photos.gather(map(Row._make, drawn), file)
    truth = {"rarity": made.rarity, "vagueness": made.vagueness[:, 0]}
    return found, made.label_names, {name: x[found.numbers].astype(float) for name, x in truth.items()}


def _read(config: DataConfig, captions: Sequence[str] | None, most: int | None, file: BinaryIO) -> Found:
    source, tally = photos.open_source(config.dataset, config.image_column, captions), photos.Tally()
    found = photos.gather(photos.stream(source, partial(photos.square, pixels=config.pixels), tally), file, most)
    tally.check(source, ended=True)
    found.said.insert(0, str(tally))
    return found, source.class_names, {}


def _stored(read: Callable[[BinaryIO], Found], config: DataConfig, state: list[Any]) -> RawPairs:
    """Return what `read(file)` finds, kept in the store; it writes the pixels to the file."""

    def build(folder: Path) -> None:
        with store.atomic(folder / "images.bin") as temporary, temporary.open("wb") as file:
            found, names, truth = read(file)
        shares, names = class_shares(found.labels, names)
        columns = {"pair_id": found.numbers, "captions": found.captions, "rarity": np.nan, "vagueness": np.nan}
        table = pd.DataFrame(columns | truth)
        ids, said = _tokenize(found.captions, config)
        for name, array in (("shares", shares), ("ids", ids)):
            np.save(buffer := io.BytesIO(), array)
            store.write_bytes(folder / f"{name}.npy", buffer.getvalue())
        store.write_table(folder / "table.parquet", table)
        with (folder / "images.bin").open("rb") as images:
            digest = hashlib.file_digest(images, "sha256")
        digest.update(json.dumps([table.to_dict("list"), names, shares.tolist()]).encode())
        about = digest.hexdigest(), "; ".join(filter(None, [said, *found.said]))
        store.write_json(folder / "content.json", {"class_names": names, "about": about})

    parts = [FORMAT, state, config.pixels, config.context, config.image_column, config.caption_columns]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = store.get_or_build("data", key, build, {"dataset": config.dataset, "pixels": config.pixels})
    table, content = pd.read_parquet(folder / "table.parquet"), json.loads((folder / "content.json").read_text())
    shape, arrays = (len(table), 3, config.pixels, config.pixels), [folder / "ids.npy", folder / "shares.npy"]
    captions, names = [list(own) for own in table["captions"]], tuple(content["class_names"])
    images, ids, shares = np.memmap(folder / "images.bin", np.uint8, "c", shape=shape), *map(np.load, arrays)
    return RawPairs(images, captions, ids, shares, names, table.drop(columns="captions"), *content["about"])


def _tokenize(captions: list[list[str]], config: DataConfig) -> tuple[np.ndarray, str]:
    """Return the token ids of all captions `[N, C, context]`, and what to say. Raise DataError for equal ones."""
    counts = [len(own) for own in captions] or [0]
    ids = encode(captions, max(counts), config.context + 1)
    if not max(counts):
        return ids, f"{len(captions):,} pictures without captions"
    cut = ids[:, :, -1] > 0  # one token too long: the end token takes the last place
    ids[cut, -2] = ids[cut, -1]
    real = np.arange(max(counts)) < np.array(counts)[:, None]  # the others repeat them
    _, times = np.unique(ids[real, :-1], axis=0, return_counts=True)
    if len(times) < 3:
        said = f"models read {config.context} tokens of a caption, and see only {len(times)} different ones here"
        raise DataError(f"{config.dataset}: {said}, such as {captions[0][0]!r:.80}. Use captions that differ at once.")
    many = f"{min(counts)} to " * (min(counts) < max(counts)) + f"{max(counts)} caption{'s' * (max(counts) > 1)}"
    said = f"{len(captions):,} pictures, {many} each, the first: {photos.printable(captions[0][0], 60)!r}"
    if cut.any():
        said += f"; {100 * cut[real].mean():.3g} % of the captions are longer than {config.context} tokens and were cut"
    if times.max() > 1:
        said += f"; {100 * times[times > 1].sum() / real.sum():.3g} % have the same tokens as another caption"
    return ids[:, :, :-1], said


def class_shares(labels: Sequence[Sequence[Any]], names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the share of each class in every image's label, float32 [N, K] with rows that sum to 1, or to 0 where no
    class is known; and the K names. K is 0 for a single class, or where classes only number the images."""
    flat = {one for own in labels for one in own}
    integers = all(type(one) is int for one in flat)
    kinds: list[Any] = sorted(one for one in flat if one >= 0) if integers else sorted(set(map(str, flat)))
    if not 1 < len(kinds) <= len(labels) / 2:
        return np.zeros((len(labels), 0), np.float32), []
    position, held = {kind: i for i, kind in enumerate(kinds)}, np.zeros((len(labels), len(kinds)), np.float32)
    for row, own in enumerate(labels):
        held[row, [position[kind] for one in own if (kind := one if integers else str(one)) in position]] = 1
    told = [names[kind] if integers and kind < len(names) else f"class {kind}" if integers else kind for kind in kinds]
    return held / np.maximum(1, held.sum(axis=1, keepdims=True)), told
