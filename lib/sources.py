"""Any Hugging Face `datasets` source: where it lies, whether it changed, and which columns hold what.

`locate` is cheap and reads nothing of a source; `open_source` reads its description; lib/images.py decodes its rows.
"""

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

PRESETS = {"flickr8k": "jxie/flickr8k"}
CAPTION_NAMES = ("captions", "caption", "sentences_raw")  # in this order; then caption_0, caption_1, …
SPLIT_ORDER = ("train", "validation", "valid", "val", "dev", "test")
HUB_TIMEOUT = 10  # seconds until an unanswered hub counts as not reachable


class DataError(ValueError):
    """The data set cannot be used; the message names the file, row or column, what was expected, and what to do."""


@dataclass(frozen=True)
class Place:
    """Where a data set lies. `identity` changes when the source does; it is "" for a hub that did not answer."""

    kind: str  # "scenes", "parquet", "folder" or "hub"
    target: str  # absolute path, or hub name
    identity: str = ""
    problem: str = ""  # why the hub did not answer

    @property
    def name(self) -> str:
        return Path(self.target).stem if self.kind == "parquet" else Path(self.target).name


@dataclass(frozen=True)
class Source:
    """An opened source: its splits in order, and the columns that were found."""

    place: Place
    parts: tuple[Any, ...]  # datasets.Dataset or datasets.IterableDataset, image bytes not decoded
    rows: int | None
    image: str
    captions: tuple[str, ...]
    label: str  # "" where there is none
    label_names: tuple[str, ...]


def locate(dataset: str) -> Place:
    """Find a data set by name or path without reading it. Raises DataError for a name or path that leads nowhere."""
    if dataset == "scenes":
        return Place("scenes", "scenes", "scenes")
    path = Path(dataset).expanduser()
    if dataset not in PRESETS and path.exists():
        return _locate_local(path.resolve())
    name = PRESETS.get(dataset, dataset)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not name.endswith(".parquet"):
        return _locate_on_hub(name)
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(dataset, ["scenes", *PRESETS], n=3, cutoff=0.5)
    near += [str(path.parent / match) for match in difflib.get_close_matches(path.name, beside, n=3)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise DataError(
        f"data set '{dataset}' not found.{hint} Give scenes, {', '.join(PRESETS)}, a hub name (owner/name), "
        f"or the path of a .parquet file or of an image folder with metadata.csv; looked for {path.absolute()}."
    )


def _locate_local(path: Path) -> Place:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        states = [f"{file.relative_to(path)}|{file.stat().st_size}|{file.stat().st_mtime_ns}" for file in files]
        return Place("folder", str(path), hashlib.sha256("\n".join(states).encode()).hexdigest())
    if path.suffix != ".parquet":
        raise DataError(f"{path}: expected a .parquet file, or a folder of images with metadata.csv.")
    return Place("parquet", str(path), f"{path.stat().st_size}|{path.stat().st_mtime_ns}")


def _locate_on_hub(name: str) -> Place:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Place("hub", name, HfApi().dataset_info(name, timeout=HUB_TIMEOUT).sha or "")
    except RepositoryNotFoundError as error:
        raise DataError(
            f"'{name}' is neither a file or folder here ({Path(name).absolute()}) nor a data set that the Hugging Face "
            f"hub shows to you. Check the spelling; a private one needs `hf auth login`."
        ) from error
    except Exception as error:  # the hub's client raises what its HTTP library of the day raises
        return Place("hub", name, problem=f"{type(error).__name__}: {first_line(error)}")


def open_source(
    place: Place, image_column: str = "", caption_columns: tuple[str, ...] = (), stream: bool = False
) -> Source:
    """Open a located source and find its columns; all splits, in the order train, validation, test, others.

    `stream` reads a hub source row by row and keeps nothing of it; files are always read so.
    Raises DataError when it cannot be read, or when a column is missing or of the wrong kind.
    """
    import datasets

    splits = _load_splits(place, stream)
    order = sorted(splits, key=lambda name: SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER))
    features = splits[order[0]].features
    image = _find_image(place, features, image_column)
    captions = _find_captions(place, features, caption_columns)
    label = "label" if "int" in str(getattr(features.get("label"), "dtype", "")) else ""
    columns = [image, *captions] + ([label] if label else [])
    parts = [splits[name].select_columns(columns) for name in order]
    if isinstance(features[image], datasets.Image):
        parts = [part.cast_column(image, datasets.Image(decode=False)) for part in parts]
    names = tuple(getattr(features.get("label"), "names", None) or ()) if label else ()
    return Source(place, tuple(parts), _count_rows(place, parts), image, captions, label, names)


def _load_splits(place: Place, stream: bool) -> dict[str, Any]:
    import datasets

    if place.problem and not datasets.config.HF_HUB_OFFLINE:  # offline on purpose: datasets' own cache may hold it
        raise _unreachable(place)
    try:
        if place.kind == "parquet":
            return datasets.load_dataset("parquet", data_files=place.target, streaming=True)
        if place.kind == "folder":
            described = any(Path(place.target).rglob("metadata.*"))
            kind = {"path": "imagefolder", "data_dir": place.target} if described else {"path": place.target}
            return datasets.load_dataset(**kind, streaming=True)
        return datasets.load_dataset(place.target, revision=place.identity or None, streaming=stream)
    except Exception as error:  # pyarrow, pandas, fsspec, HTTP and datasets raise dozens of kinds here
        if place.problem:
            raise _unreachable(place) from error
        raise DataError(
            f"{place.target}: Hugging Face datasets cannot read it ({type(error).__name__}: {first_line(error)}). "
            f"Expected a parquet file, an image folder with metadata.csv (columns file_name, caption), or a hub name."
        ) from error


def _unreachable(place: Place) -> DataError:
    return DataError(
        f"the hub data set '{place.target}' cannot be reached ({place.problem}) and is not in the cache. Connect to "
        f"the network once, or download its parquet file elsewhere and give that file's path as the data set."
    )


def _find_image(place: Place, features: dict[str, Any], wanted: str) -> str:
    import datasets

    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    name = wanted or next(iter([*found, *(name for name in ("image", "img") if name in features)]), "")
    if name in features:
        return name
    raise DataError(
        f"{place.target}: no image column{f' {wanted!r}' if wanted else ''}. Its columns are {', '.join(features)}. "
        f"Name the one that holds image files with Data(image_column=...)."
    )


def _find_captions(place: Place, features: dict[str, Any], wanted: tuple[str, ...]) -> tuple[str, ...]:
    numbered = sorted((name for name in features if re.fullmatch(r"caption_\d+", name)), key=lambda n: int(n[8:]))
    named = [name for name in CAPTION_NAMES if name in features][:1]
    columns = tuple(wanted) or tuple(named or numbered)
    missing = [name for name in columns if name not in features]
    if missing or not columns:
        folder = " An image folder needs a metadata.csv with file_name and caption." if place.kind == "folder" else ""
        raise DataError(
            f"{place.target}: no caption column{'s ' + ', '.join(missing) if missing else ''}. Its columns are "
            f"{', '.join(features)}. Expected {', '.join(CAPTION_NAMES)} or caption_0, caption_1, …; name others with "
            f"Data(caption_columns=('text',)).{folder}"
        )
    for name in columns:
        inner = getattr(features[name], "feature", features[name])
        if getattr(inner, "dtype", "") not in ("string", "large_string", "string_view", "null"):
            raise DataError(f"{place.target}: column '{name}' holds {features[name]}, expected text or lists of text.")
    return columns


def _count_rows(place: Place, parts: list[Any]) -> int | None:
    if place.kind == "parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(place.target).num_rows
    if place.kind == "folder":
        return sum(1 for file in Path(place.target).rglob("*") if file.suffix.lower() in Image.registered_extensions())
    counts = [part.num_rows for part in parts if hasattr(part, "num_rows")]
    return sum(counts) if counts else None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, its kind when it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
