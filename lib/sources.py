"""Find any data set of pictures with captions or labels, open it, and find its columns.

A data set is the drawn scenes, a parquet file, a folder of images with metadata or of WebDataset shards, or a name on
the Hugging Face Hub.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lib.captions import DataError
from lib.recipes import PRESETS, did_you_mean

CAPTION_NAMES = ("captions", "caption", "sentences_raw", "txt")  # in this order; then caption_0, caption_1, …
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
SPLIT_ORDER = ("train", "validation", "valid", "val", "dev", "test")  # then all others


class Columns(NamedTuple):
    """The names of the columns of a data set."""

    image: str
    captions: list[str]
    label: str  # "": none


def locate(dataset: str) -> tuple[str, str]:
    """Return how a data set is read ("scenes", "parquet", "imagefolder", "webdataset" or "hub") and its path or name
    there. Raise DataError for one that is none of these."""
    if dataset == "scenes":
        return "scenes", dataset
    if dataset.startswith("hf://"):  # single files on the Hub
        return "parquet", dataset
    path = Path(os.path.expanduser(dataset))  # those of os.path raise nothing for odd names
    there = next((one for one in (path, *path.parents) if os.path.exists(one)), path)
    if os.path.exists(there) and not os.access(there, os.X_OK if os.path.isdir(there) else os.R_OK):
        raise DataError(f"{there} may not be read: change its permissions (chmod), or give another path.")
    if dataset and dataset not in PRESETS and os.path.exists(path):
        if path.is_dir() and any(path.rglob("metadata.*")):
            return "imagefolder", str(path.resolve())
        if path.is_dir() and any(path.glob("*.tar")):
            return "webdataset", str(path.resolve())
        if path.is_file() and path.suffix == ".parquet":
            return "parquet", str(path.resolve())
        wanted = "a .parquet file, or a folder: of images with metadata.csv (file_name, caption), or of .tar shards"
        raise DataError(f"{path}: expected {wanted}.")
    name = PRESETS.get(dataset, dataset)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not name.endswith(".parquet"):
        return "hub", name
    beside = os.listdir(path.parent) if os.path.isdir(path.parent) and os.access(path.parent, os.R_OK) else []
    near = did_you_mean(dataset, ["scenes", *PRESETS]) or did_you_mean(path.name, beside)
    raise DataError(
        f"data set '{dataset}' not found.{near} Give scenes, {', '.join(PRESETS)}, a name on the Hugging Face Hub "
        f"(owner/name), or the path of a .parquet file, or of a folder of images with a metadata.csv or of .tar shards."
    )


def open_rows(dataset: str, often: bool = False) -> Any:
    """Return all splits of a data set as one of `datasets`, in the order train, validation, test, others, undecoded.

    All are streamed, so that nothing is copied. A set on the Hub that is read `often` goes into the cache of `datasets`
    first. Raise DataError for one that cannot be read.
    """
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would say every error before we do
    kind, where = locate(dataset)
    literal = where if where.startswith("hf://") else re.sub(r"([*?\[])", r"[\1]", where)  # no pattern in a file's name
    patterns = {"parquet": literal, "imagefolder": f"{literal}/**", "webdataset": f"{literal}/*.tar"}
    files = patterns.get(kind)  # one split, whatever its folders are called
    try:
        splits = datasets.load_dataset(kind if files else where, data_files=files, streaming=bool(files) or not often)
        order = sorted(splits, key=lambda name: (*SPLIT_ORDER, name).index(name))
        whole = datasets.concatenate_datasets([splits[name] for name in order])
        whole = whole.to_iterable_dataset() if isinstance(whole, datasets.Dataset) else whole
        if not whole.features:
            raise ValueError("its columns are known only after reading it all")
    except Exception as error:  # pyarrow, fsspec, HTTP and datasets raise errors of dozens of kinds
        raise DataError(
            f"{where}: cannot be read ({type(error).__name__}: {error!s:.200}). Copy the file again; for a set on the "
            f"Hub check its name, the network and `hf auth login`, or give the path of its downloaded parquet file."
        ) from error
    for name, feature in dict(whole.features).items():  # decoded here: a broken image must cost one row only
        if isinstance(feature, datasets.Image):
            whole = whole.cast_column(name, datasets.Image(decode=False))
    return whole


def find_columns(rows: Any, where: str, image: str = "", captions: Sequence[str] = ()) -> Columns:
    """Return the columns of an opened data set, those that are named or else those that are usual. Raise DataError
    where one that is needed is missing or of the wrong type, or where two may be meant."""
    kinds = {name: getattr(feature, "feature", feature) for name, feature in rows.features.items()}  # of elements
    flat = ("Value", "ClassLabel", "Image")  # what is deeper than a list of these is "" below
    kinds = {name: kind.dtype if type(kind).__name__ in flat else "" for name, kind in kinds.items()}
    typed = [name for name, kind in kinds.items() if kind.startswith("PIL")]
    usual = [name for name in IMAGE_NAMES if name in (typed or kinds)]  # a `mask` is not what is trained on
    names = [image] if image else usual[:1] or (typed if len(typed) == 1 else [])
    numbered = sorted((name for name in kinds if re.fullmatch(r"caption_\d+", name)), key=lambda name: int(name[8:]))
    texts = list(captions) or [name for name in CAPTION_NAMES if name in kinds][:1] or numbered
    for what, option, found in (("image", "--image", names), ("caption", "--captions", texts)):
        missing = [name for name in found if name not in kinds]
        if missing or not found:
            raise DataError(
                f"{where}: no {what} column{''.join(f' {name!r}' for name in missing)}. Its columns are "
                f"{', '.join(kinds)}. Name the right one: {option} COLUMN with ./run_all.sh, or the parameter "
                f"`{option[2:]}` in a notebook (several caption columns: with commas between them)."
            )
    for name in texts:
        if "string" not in kinds[name]:
            what = f"{where}: column '{name}' holds {rows.features[name]}"
            raise DataError(f"{what}, expected text or lists of text. Store it as text, or name another column.")
    labels = [name for name in ("label", "labels") if kinds.get(name) and name not in (*typed, *texts)]
    return Columns(names[0], texts, labels[0] if labels else "")


def picture_files(parquet: str, image: str = "") -> list[Path]:
    """Return the files that the picture column of a parquet file names; of bytes inside it, a path is just a name."""
    try:
        schema = pq.read_schema(parquet)
    except (OSError, pa.ArrowException):
        return []  # `open_rows` says what is wrong
    for name in [name for name in (image, *IMAGE_NAMES) if name in schema.names][:1]:
        kind, column = schema.field(name).type, name
        if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
            kind, column = kind.field("path").type, f"{name}.path"
        if pa.types.is_string(kind):
            cells = pq.ParquetFile(parquet).read(columns=[column])[name].to_pylist()
            return [Path(path) for cell in cells if (path := cell["path"] if isinstance(cell, dict) else cell)]
    return []
