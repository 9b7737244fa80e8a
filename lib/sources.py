"""Any Hugging Face `datasets` source: where it lies, which columns hold what, and its rows, decoded.

`locate` reads nothing of a source, `open_source` its description; the rows are decoded while they are taken.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from lib.decode import decode_image

PRESETS = {"flickr8k": "jxie/flickr8k"}
CAPTION_NAMES = ("captions", "caption", "sentences_raw")  # in this order; then caption_0, caption_1, …
SPLIT_ORDER = ("train", "validation", "valid", "val", "dev", "test")  # then all others
HUB_TIMEOUT = 10  # seconds until an unanswered hub counts as not reachable
BATCH = 64  # rows in memory at a time


class DataError(ValueError):
    """The data set cannot be used; the message names the file, row or column, what was expected, and what to do."""


class Place(NamedTuple):
    """Where a data set lies."""

    kind: str  # "scenes", "parquet", "folder" or "hub"
    name: str  # short
    target: str  # absolute path, or hub name
    identity: str = ""  # changes when the source does
    problem: str = ""  # why the hub did not answer


class Row(NamedTuple):
    """One row of a source. One that cannot be used has no image, and its problem is said."""

    pair_id: int
    image: np.ndarray | None  # uint8 [3, pixels, pixels]
    captions: list[str]
    label: int | None = None  # -1: this row has none, None: the whole source has none
    rarity: float | None = None  # scenes only
    vagueness: list[float] | None = None  # scenes only, one a caption
    label_set: list[int] | None = None  # of a column `labels`; empty: this row has none, None: the whole source
    problem: str = ""


class Source(NamedTuple):
    """An opened source: all splits, in the order train, validation, test, others."""

    rows: Iterator[Row]
    size: int | None  # number of rows, None: unknown
    label_names: tuple[str, ...]
    columns: str = ""  # which were found, in words


def locate(dataset: str) -> Place:
    """Find a data set by name or path without reading it. Raises DataError for a name or path that leads nowhere."""
    if dataset == "scenes":
        return Place("scenes", "scenes", "scenes", _digest(Path(__file__).parent.glob("scene*.py")))
    path = Path(dataset).expanduser()
    if dataset not in PRESETS and path.exists():
        path = path.resolve()
        if path.is_dir():
            return Place("folder", path.name, str(path), _digest(path.rglob("*")))
        if path.suffix == ".parquet":
            return Place("parquet", path.stem, str(path), _digest([path]))
        raise DataError(f"{path}: expected a .parquet file, or a folder of images with metadata.csv.")
    name = PRESETS.get(dataset, dataset)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not name.endswith(".parquet"):
        return _locate_on_hub(name)
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(dataset, ["scenes", *PRESETS], cutoff=0.5)
    near += [str(path.parent / match) for match in difflib.get_close_matches(path.name, beside)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise DataError(
        f"data set '{dataset}' not found.{hint} Give scenes, flickr8k, a hub name (owner/name), or the path of a "
        f".parquet file or of an image folder with metadata.csv."
    )


def _digest(files: Iterable[Path]) -> str:
    states = [f"{file}|{file.stat().st_size}|{file.stat().st_mtime_ns}" for file in sorted(files) if file.is_file()]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()


def _locate_on_hub(name: str) -> Place:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    short = name.split("/")[1]
    try:
        return Place("hub", short, name, HfApi().dataset_info(name, timeout=HUB_TIMEOUT).sha or "")
    except RepositoryNotFoundError as error:
        raise DataError(
            f"'{name}' is no file or folder ({Path(name).absolute()}), and the Hugging Face hub shows you no such data "
            f"set. Check the spelling; a private one needs `hf auth login`."
        ) from error
    except Exception as error:  # the hub's client raises what its HTTP library of the day raises
        return Place("hub", short, name, problem=_said(error))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


# --- its description ---


def open_source(
    place: Place, image_column: str, caption_columns: tuple[str, ...], pixels: int, stream: bool = False
) -> Source:
    """Open a located source and find its columns. `stream` keeps nothing of a hub source; files are always read so.

    Raises DataError when it cannot be read, or when a column is missing or of the wrong kind.
    """
    import datasets

    splits = _load_splits(place, stream)
    order = sorted(splits, key=lambda name: SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER))
    features = splits[order[0]].features
    image, captions = _find_image(place, features, image_column), _find_captions(place, features, caption_columns)
    labels = _find_labels(features)
    parts = [splits[name].select_columns([image, *captions, *labels]) for name in order]
    if isinstance(features[image], datasets.Image):  # decoded here, so that a broken image costs one row, not the set
        parts = [part.cast_column(image, datasets.Image(decode=False)) for part in parts]
    rows = _rows(place, parts, lambda number, row: _decode(number, row, image, captions, set(labels), pixels))
    names = next(iter(labels.values()), ())
    return Source(rows, _size(place, parts), names, f"images in '{image}', captions in {', '.join(captions)}")


def _load_splits(place: Place, stream: bool) -> dict[str, Any]:
    import datasets

    try:
        if place.problem and not datasets.config.HF_HUB_OFFLINE:  # offline on purpose: datasets' own cache may hold it
            raise ConnectionError(place.problem)
        if place.kind == "parquet":
            return datasets.load_dataset("parquet", data_files=place.target, streaming=True)
        if place.kind == "folder":
            described = any(Path(place.target).rglob("metadata.*"))
            kind = {"path": "imagefolder", "data_dir": place.target} if described else {"path": place.target}
            return datasets.load_dataset(**kind, streaming=True)
        return datasets.load_dataset(place.target, revision=place.identity or None, streaming=stream)
    except Exception as error:  # pyarrow, pandas, fsspec, HTTP and datasets raise dozens of kinds here
        if place.problem:
            raise DataError(
                f"the hub data set '{place.target}' cannot be reached ({place.problem}) and is not in the cache. "
                f"Connect to the network once, or download its parquet file elsewhere and give that file's path."
            ) from error
        raise DataError(
            f"{place.target}: Hugging Face datasets cannot read it ({_said(error)}). Expected a parquet file, "
            f"an image folder with metadata.csv (columns file_name, caption), or a hub name."
        ) from error


def _find_image(place: Place, features: dict[str, Any], wanted: str) -> str:
    typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    for name in [wanted] if wanted else [*typed, "image", "img"]:
        if name in features:
            return name
    raise DataError(
        f"{place.target}: no image column {wanted}. Its columns are {', '.join(features)}. "
        f"Name the one that holds image files with Data(image_column=...)."
    )


def _find_captions(place: Place, features: dict[str, Any], wanted: tuple[str, ...]) -> list[str]:
    numbered = sorted((name for name in features if re.fullmatch(r"caption_\d+", name)), key=lambda n: int(n[8:]))
    columns = list(wanted) or [name for name in CAPTION_NAMES if name in features][:1] or numbered
    missing = [name for name in columns if name not in features]
    if missing or not columns:
        folder = " An image folder needs a metadata.csv with file_name and caption." if place.kind == "folder" else ""
        raise DataError(
            f"{place.target}: no caption column{'s ' + ', '.join(missing) if missing else ''}. Its columns are "
            f"{', '.join(features)}. Expected {', '.join(CAPTION_NAMES)} or caption_0, caption_1, …; name others with "
            f"captions = 'text' in the notebook, or Data(caption_columns=('text',)) in lib.{folder}"
        )
    for name in columns:
        text = getattr(features[name], "feature", features[name])  # a list has a feature
        if getattr(text, "dtype", "") not in ("string", "large_string", "string_view", "null"):
            raise DataError(f"{place.target}: column '{name}' holds {features[name]}, expected text or lists of text.")
    return columns


def _find_labels(features: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Which of `label` (an int) and `labels` (a list of ints) there are, with the names of their classes."""
    kinds = {"label": features.get("label"), "labels": getattr(features.get("labels"), "feature", None)}
    whole = {name: kind for name, kind in kinds.items() if "int" in str(getattr(kind, "dtype", ""))}
    return {name: tuple(getattr(kind, "names", None) or ()) for name, kind in whole.items()}


def _size(place: Place, parts: list[Any]) -> int | None:
    if place.kind == "parquet":
        return pq.read_metadata(place.target).num_rows
    if place.kind == "folder":
        return sum(file.suffix.lower() in Image.registered_extensions() for file in Path(place.target).rglob("*"))
    return sum(part.num_rows for part in parts) if hasattr(parts[0], "num_rows") else None


# --- its rows ---


def _rows(place: Place, parts: list[Any], decode: Callable[[int, dict[str, Any]], Row]) -> Iterator[Row]:
    """All rows, decoded on all cores; a row that cannot be used comes with its problem."""
    raw, start = chain.from_iterable(parts), 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := _take(raw, place, start):
            yield from pool.map(decode, range(start, start + len(batch)), batch)
            start += len(batch)


def _take(raw: Iterator[dict[str, Any]], place: Place, start: int) -> list[dict[str, Any]]:
    try:
        return list(islice(raw, BATCH))
    except Exception as error:  # pyarrow's and the network's errors of many kinds
        raise DataError(f"{place.target}: breaks off after row {start} ({_said(error)}). Copy it again.") from error


def _decode(number: int, row: dict[str, Any], image: str, captions: list[str], labels: set[str], pixels: int) -> Row:
    values = [row[name] for name in captions]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    texts = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if not texts:
        return Row(number, None, [], problem=f"row {number}: no caption that is not empty")
    cell = row[image]
    label = None if "label" not in labels else -1 if row["label"] is None else row["label"]
    label_set = [one for one in row["labels"] or () if one is not None] if "labels" in labels else None
    try:
        return Row(number, decode_image(cell, pixels), texts, label, label_set=label_set)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … on damaged files
        file = f" ({cell['path']})" if isinstance(cell, dict) and cell.get("path") else ""
        reason = "no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else _said(error)
        return Row(number, None, texts, problem=f"row {number}{file}: {reason}")
