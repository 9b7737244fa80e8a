"""Read any data set of pictures with captions or labels: find it, find its columns, decode its rows.

A data set is the drawn scenes, a parquet file, a folder of images with metadata, or a name on the Hugging Face Hub.
"""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from lib.captions import DataError
from lib.recipes import PRESETS, did_you_mean

CAPTION_NAMES = ("captions", "caption", "sentences_raw")  # in this order; then caption_0, caption_1, …
IMAGE_NAMES = ("image", "img")
SPLIT_ORDER = ("train", "validation", "valid", "val", "dev", "test")  # then all others
MAX_BROKEN = 0.01  # largest share of rows without a readable image or caption that is skipped
BATCH = 256  # rows decoded at a time
FIRST_ROWS = 200  # what a check reads


class Columns(NamedTuple):
    """The names of the columns of a data set."""

    image: str
    captions: list[str]
    label: str  # "": none


class Row(NamedTuple):
    """One usable row."""

    number: int
    image: np.ndarray  # uint8 [3, pixels, pixels]
    captions: list[str]
    labels: list[Any]  # empty: none known


# --- where it lies ---


def locate(dataset: str) -> tuple[str, str]:
    """Return how a data set is read ("scenes", "parquet", "imagefolder" or "hub") and its path or name on the Hub.

    Raises:
        DataError: it is none of these.
    """
    if dataset == "scenes":
        return "scenes", dataset
    if dataset.startswith("hf://"):  # single files on the Hub
        return "parquet", dataset
    path = Path(dataset).expanduser() if not dataset.startswith("~") else Path(os.path.expanduser(dataset))
    if dataset and dataset not in PRESETS and path.exists():
        if path.is_dir() and any(path.rglob("metadata.*")):
            return "imagefolder", str(path.resolve())
        if path.is_file() and path.suffix == ".parquet":
            return "parquet", str(path.resolve())
        raise DataError(
            f"{path}: expected a .parquet file, or a folder of images with a metadata.csv (columns file_name, caption)."
        )
    name = PRESETS.get(dataset, dataset)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not name.endswith(".parquet"):
        return "hub", name
    near = did_you_mean(dataset, ["scenes", *PRESETS])
    if not near and path.parent.is_dir():
        near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
    raise DataError(
        f"data set '{dataset}' not found.{near} Give scenes, flickr8k, a name on the Hugging Face Hub (owner/name), or "
        f"the path of a .parquet file or of an image folder with a metadata.csv."
    )


def open_rows(dataset: str) -> Any:
    """Return all splits of a data set as one of `datasets`, in the order train, validation, test, others, undecoded.

    Files are streamed, so that nothing is copied; a set on the Hub is kept in the cache of `datasets`.

    Raises:
        DataError: `datasets` cannot read it.
    """
    import datasets

    kind, where = locate(dataset)
    path = {"parquet": "parquet", "imagefolder": "imagefolder", "hub": where}[kind]
    literal = where if where.startswith("hf://") else re.sub(r"([*?\[])", r"[\1]", where)  # no pattern in a file's name
    files = {"parquet": {"data_files": literal}, "imagefolder": {"data_dir": where}}
    try:
        splits = datasets.load_dataset(path, streaming=kind != "hub", **files.get(kind, {}))
        order = sorted(splits, key=lambda name: SPLIT_ORDER.index(name) if name in SPLIT_ORDER else len(SPLIT_ORDER))
        whole = datasets.concatenate_datasets([splits[name] for name in order])
    except Exception as error:  # pyarrow, fsspec, HTTP and datasets raise errors of dozens of kinds
        said = next(iter(str(error).strip().splitlines()), "")
        advice = (
            "Check the spelling (a private one needs `hf auth login`) and the network; or download its parquet file "
            "elsewhere and give that file's path."
            if kind == "hub"
            else "The file may be truncated or of another format: copy it again."
        )
        raise DataError(f"{where}: cannot be read ({type(error).__name__}: {said}). {advice}") from error
    for name, feature in dict(whole.features).items():  # decoded here: a broken image must cost one row only
        if isinstance(feature, datasets.Image):
            whole = whole.cast_column(name, datasets.Image(decode=False))
    return whole


# --- which columns hold what ---


def find_columns(rows: Any, where: str, image: str = "", captions: Sequence[str] = ()) -> Columns:
    """Return the columns of an opened data set, those that are named or else those that are usual.

    Raises:
        DataError: one that is needed is missing or of the wrong type.
    """
    features = rows.features
    typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    typed.sort(key=lambda name: name not in IMAGE_NAMES)  # a `mask` before an `image` is not what is trained on
    numbered = sorted((name for name in features if re.fullmatch(r"caption_\d+", name)), key=lambda n: int(n[8:]))
    names = [image] if image else [*typed, *(name for name in IMAGE_NAMES if name in features)][:1]
    texts = list(captions) or [name for name in CAPTION_NAMES if name in features][:1] or numbered
    for what, option, found in (("image", "--image", names), ("caption", "--captions", texts)):
        missing = [name for name in found if name not in features]
        if missing or not found:
            raise DataError(
                f"{where}: no {what} column{''.join(f' {name!r}' for name in missing)}. Its columns are "
                f"{', '.join(features)}. Name the right one: {option} COLUMN with ./run_all.sh, or the parameter "
                f"`{option[2:]}` in a notebook (several caption columns: with commas between them)."
            )
    for name in texts:
        text = getattr(features[name], "feature", features[name])  # a list of texts has a feature
        if "string" not in str(getattr(text, "dtype", "")):
            raise DataError(f"{where}: column '{name}' holds {features[name]}, expected text or lists of text.")
    return Columns(names[0], texts, next((name for name in ("label", "labels") if name in features), ""))


# --- its rows ---


def decode_image(cell: Any, pixels: int) -> np.ndarray:
    """Return uint8 `[3, pixels, pixels]` of an image cell ({"bytes", "path"}, bytes or a path). Raise as Pillow does.

    The shorter side is resized to `pixels` (bicubic, antialiased), the centre kept; what is transparent becomes white.
    """
    content = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
    if not content or (isinstance(content, str) and not Path(content).is_file()):  # a pipe would never end
        raise ValueError("there is no image")
    with warnings.catch_warnings(), Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but decoded all the same
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode[0] in "IF":  # grey beyond 8 bits, or real numbers: Pillow would cut these off, not scale them
            values = np.asarray(image, float).clip(0)
            top = next((limit for limit in (1, 255, 4095, 65535) if values.max() <= limit), values.max())
            image = Image.fromarray((values * (255 / top)).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        square = ImageOps.fit(image.convert("RGB"), (pixels, pixels), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _usable(row: dict[str, Any], image: str, captions: list[str], pixels: int) -> tuple[np.ndarray, list[str]] | str:
    """Return the picture and the captions of a row, or what is wrong with it."""
    cells = [row[name] for name in captions]
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
    texts = [text.strip() for text in texts if isinstance(text, str) and re.search(r"[^\s\u200b-\u200f\ufeff]", text)]
    if captions and not texts:
        return "no caption that is not empty"
    try:
        return decode_image(row[image], pixels), texts
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … on damaged files
        path = row[image].get("path") if isinstance(row[image], dict) else None
        return f"{path or 'its picture'} cannot be read ({type(error).__name__}: {error})"


def read_rows(rows: Any, where: str, columns: Columns, pixels: int) -> Iterator[Row]:
    """Yield every usable row, decoded on all cores.

    Rows that cannot be used are counted and skipped, up to MAX_BROKEN of them; a warning names the first ones.

    Raises:
        DataError: there are more, or no row is left, or reading breaks off.
    """
    names = dict.fromkeys([columns.image, *columns.captions, *filter(None, [columns.label])])
    decode = partial(_usable, image=columns.image, captions=columns.captions, pixels=pixels)
    number, problems = 0, []
    batches = iter(rows.select_columns(list(names)).iter(batch_size=BATCH))
    bar = tqdm(desc=f"reading {Path(where).name}", unit=" rows", file=sys.stdout, leave=False)
    with ThreadPoolExecutor() as pool, bar:
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # pyarrow's and the network's errors of many kinds
                raise DataError(f"{where}: reading stopped after row {number} ({error}). Copy it again.") from error
            if batch is None:
                break
            many = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            for row, found in zip(many, pool.map(decode, many), strict=True):
                if isinstance(found, str):
                    problems.append(f"row {number}: {found}")
                else:
                    cell = row[columns.label] if columns.label else None
                    labels = [one for one in (cell if isinstance(cell, list) else [cell]) if one is not None]
                    yield Row(number, *found, labels)
                number += 1
            bar.update(len(many))
    if problems or not number:
        said = f"{where}: {len(problems)} of {number} rows cannot be used: {'; '.join(problems[:5])}"
        if len(problems) > MAX_BROKEN * number or not number:
            raise DataError(f"{said}. At most {MAX_BROKEN:.0%} are skipped: repair or remove these rows.")
        warnings.warn(f"{said}. They are skipped.", stacklevel=2)


def check(dataset: str, image: str = "", captions: Sequence[str] = ()) -> str:
    """Return a sentence about what a data set holds, from its description and first rows, without reading it all.

    Raises:
        DataError: it cannot be used, as far as the first rows tell.
    """
    if dataset == "scenes":
        return "scenes: drawn from a seed, nothing to read or download"
    rows, (_, where) = open_rows(dataset), locate(dataset)
    columns = find_columns(rows, where, image, captions)
    found = [_usable(row, columns.image, columns.captions, 8) for row in islice(rows, FIRST_ROWS)]
    texts = {" ".join(one[1]) for one in found if not isinstance(one, str)}
    if not texts:
        raise DataError(f"{where}: no usable row among the first {FIRST_ROWS}: {found[0] if found else 'it is empty'}.")
    if len(texts) < min(3, len(found)):
        raise DataError(f"{where}: the first captions are all alike; CLIP needs captions that tell pictures apart.")
    return f"{where}: pictures in '{columns.image}', captions in {', '.join(columns.captions)}"
