"""Read any data set of pictures with captions or labels: find it, find its columns, decode its rows.

A data set is the drawn scenes, a parquet file, a folder of images with metadata, or a name on the Hugging Face Hub.
"""

import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from tqdm import tqdm

from lib.captions import DataError
from lib.recipes import PRESETS, did_you_mean

CAPTION_NAMES = ("captions", "caption", "sentences_raw")  # in this order; then caption_0, caption_1, …
IMAGE_NAMES = ("image", "img")
SPLIT_ORDER = ("train", "validation", "valid", "val", "dev", "test")  # then all others
MAX_BROKEN = 0.01  # largest share of rows without a readable image or caption that is skipped
BATCH = 256  # rows decoded at a time
FIRST_ROWS = 1000  # what a check reads at most; it mostly ends after three
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # large pictures are decoded all the same


class Columns(NamedTuple):
    """The names of the columns of a data set."""

    image: str
    captions: list[str]
    label: str  # "": none


class Row(NamedTuple):
    """One usable row."""

    number: int
    image: Any  # what was made of the picture, such as uint8 [3, pixels, pixels]
    captions: list[str]
    labels: list[Any]  # empty: none known


def locate(dataset: str) -> tuple[str, str]:
    """Return how a data set is read ("scenes", "parquet", "imagefolder" or "hub") and its path or name there. Raise
    DataError for one that is none of these."""
    if dataset == "scenes":
        return "scenes", dataset
    if dataset.startswith("hf://"):  # single files on the Hub
        return "parquet", dataset
    path = Path(os.path.expanduser(dataset))  # those of os.path raise nothing for odd names
    if dataset and dataset not in PRESETS and os.path.exists(path):
        if path.is_dir() and any(path.rglob("metadata.*")):
            return "imagefolder", str(path.resolve())
        if path.is_file() and path.suffix == ".parquet":
            return "parquet", str(path.resolve())
        raise DataError(f"{path}: expected a .parquet file, or an image folder with metadata.csv (file_name, caption).")
    name = PRESETS.get(dataset, dataset)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not name.endswith(".parquet"):
        return "hub", name
    beside = os.listdir(path.parent) if os.path.isdir(path.parent) and os.access(path.parent, os.R_OK) else []
    near = did_you_mean(dataset, ["scenes", *PRESETS]) or did_you_mean(path.name, beside)
    raise DataError(
        f"data set '{dataset}' not found.{near} Give scenes, flickr8k, a name on the Hugging Face Hub (owner/name), or "
        f"the path of a .parquet file or of an image folder with a metadata.csv."
    )


def open_rows(dataset: str) -> Any:
    """Return all splits of a data set as one of `datasets`, in the order train, validation, test, others, undecoded.

    Files are streamed, so that nothing is copied; a set on the Hub is kept in the cache of `datasets`. Raise DataError
    for one that cannot be read.
    """
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would say every error before we do
    kind, where = locate(dataset)
    literal = where if where.startswith("hf://") else re.sub(r"([*?\[])", r"[\1]", where)  # no pattern in a file's name
    files = {"parquet": literal, "imagefolder": f"{literal}/**"}.get(kind)  # one split, whatever its folders are called
    try:
        splits = datasets.load_dataset(kind if files else where, data_files=files, streaming=files is not None)
        order = sorted(splits, key=lambda name: (*SPLIT_ORDER, name).index(name))
        whole = datasets.concatenate_datasets([splits[name] for name in order])
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


def decode_image(cell: Any) -> Image.Image:
    """Return the picture of an image cell ({"bytes", "path"}, bytes or a path), in RGB and at its own size; what is
    transparent becomes white. Raise as Pillow does."""
    content = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
    if not content or (isinstance(content, str) and not os.path.isfile(content)):  # a pipe would never end
        raise ValueError("there is no image")
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode[0] in "IF":  # grey beyond 8 bits, or real numbers: Pillow would cut these off, not scale them
            values = np.nan_to_num(np.asarray(image, float), posinf=0).clip(0)
            top = next((limit for limit in (1, 255, 4095, 65535) if values.max() <= limit), values.max())
            image = Image.fromarray((values * (255 / top)).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def square(image: Image.Image, pixels: int) -> np.ndarray:
    """Return uint8 `[3, pixels, pixels]`: the shorter side resized (bicubic, antialiased), and the centre kept."""
    fitted = ImageOps.fit(image, (pixels, pixels), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def _listed(cells: Iterable[Any]) -> list[Any]:
    return [one for cell in cells for one in (cell if isinstance(cell, list) else [cell])]


def _usable(row: dict[str, Any], columns: Columns, make: Callable) -> tuple[Any, list[str], list[Any]] | str:
    """Return what `make` makes of the picture, the captions and the labels of a row, or what is wrong with it."""
    texts = [text.strip() for text in _listed(row[name] for name in columns.captions) if isinstance(text, str)]
    texts = [text for text in texts if any(one.isprintable() and one != " " for one in text)]  # what shows
    if columns.captions and not texts:
        return "no caption that is not empty"
    labels = _listed([row[columns.label]]) if columns.label else []
    cell = row[columns.image]
    try:
        return make(decode_image(cell)), texts, [one for one in labels if one == one and one not in (None, "")]
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … on damaged files
        path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
        return f"{path or 'its picture'} cannot be read ({type(error).__name__}: {error})"


def batches(rows: Any, where: str) -> Iterator[list[dict[str, Any]]]:
    """Yield all rows in lists, undecoded. Raise DataError where reading breaks off."""
    done = 0
    try:
        for batch in rows.iter(batch_size=BATCH):
            yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            done += BATCH
    except Exception as error:  # pyarrow's and the network's errors of many kinds
        said = f"{where}: reading stopped after {done} rows ({error})"
        raise DataError(f"{said}. It is damaged or empty: copy it again.") from error


def read_rows(
    rows: Any,
    where: str,
    columns: Columns,
    make: Callable[[Image.Image], Any],
    first: int = 0,
    only: Collection[int] | None = None,
) -> Iterator[Row]:
    """Yield every usable row, or those from number `first` on, or `only` some numbers; decoded on all cores, where
    `make` turns each picture into what is kept.

    Others are counted and skipped, up to MAX_BROKEN of all; a warning names the first ones. Raise DataError where there
    are more, or no row is left, or reading breaks off.
    """
    names = dict.fromkeys([columns.image, *columns.captions, *filter(None, [columns.label])])
    rows, start, problems = rows.select_columns(list(names)), first, []
    with ThreadPoolExecutor() as pool, tqdm(desc="reading", unit=" rows", file=sys.stdout, leave=False, delay=2) as bar:
        for batch in batches(rows.skip(first) if first else rows, where):
            wanted = {n: row for n, row in enumerate(batch, start) if only is None or n in only}
            found = pool.map(partial(_usable, columns=columns, make=make), wanted.values())
            for place, one in zip(wanted, found, strict=True):
                if isinstance(one, str):
                    problems.append(f"row {place}: {one}")
                else:
                    yield Row(place, *one)
            start += len(batch)
            bar.update(len(batch))
    if (number := start - first) == 0 or problems:
        said = f"{where}: {len(problems)} of {number} rows cannot be used: {'; '.join(problems[:5])}"
        if len(problems) > MAX_BROKEN * number or not number:
            raise DataError(f"{said}. At most {MAX_BROKEN:.0%} are skipped: repair or remove these rows.")
        warnings.warn(f"{said}. They are skipped.", stacklevel=2)


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
