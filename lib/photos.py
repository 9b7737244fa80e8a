"""Photographs with captions or labels: a data set is found and opened, its rows are decoded and gathered.

A data set is a parquet file, a folder of images with a metadata.csv or of WebDataset shards, or a name on the Hugging
Face Hub. A picture that cannot be decoded costs one row.
"""

import hashlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

# Short names of data sets on the Hub. COCO's training pictures have five captions, those of CC3M have one.
PRESETS = {"flickr8k": "jxie/flickr8k", "coco": "Multimodal-Fatima/COCO_captions_train", "cc3m": "pixparse/cc3m-wds"}
CAPTION_NAMES = ("captions", "caption", "sentences_raw", "txt")  # in this order; then caption_0, caption_1, …
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
SPLITS = ("train", "validation", "valid", "val", "dev", "test")  # in this order, then all others
MAX_BROKEN = 0.01  # largest share of rows without a readable image or caption that is skipped
MAX_CAPTIONS = 10  # of an image; one placeholder image of thousands of rows would widen the tokens of all
BATCH = 256  # rows decoded at a time
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # large pictures are decoded all the same


class DataError(ValueError):
    """A data set cannot be used; the message says what was expected."""


class Source(NamedTuple):
    """An opened data set, undecoded, and the names of its columns."""

    where: str  # its path, or its name on the Hub
    rows: Any  # an IterableDataset of `datasets`
    image: str
    captions: list[str]  # empty: none are needed
    label: str = ""  # "": none
    class_names: Sequence[str] = ()  # of the class ids 0, 1, …, where the source tells them


class Row(NamedTuple):
    """One usable row; `image` is what was made of its picture, such as uint8 [3, pixels, pixels]."""

    number: int  # from 0
    image: Any
    captions: list[str]
    labels: list[Any]  # empty: none known


@dataclass
class Tally:
    """How many rows were read, and what is wrong with those that were skipped."""

    rows: int = 0
    broken: list[str] = field(default_factory=list)

    def report(self, where: str) -> None:
        """Warn of the rows that were skipped. Raise DataError where they are more than MAX_BROKEN, or all."""
        said = f"{where}: {len(self.broken)} of {self.rows} rows cannot be used: {'; '.join(self.broken[:5])}"
        if len(self.broken) > MAX_BROKEN * self.rows or not self.rows:
            raise DataError(f"{said}. At most {MAX_BROKEN:.0%} are skipped: repair or remove these rows.")
        if self.broken:
            warnings.warn(f"{said}. They are skipped.", stacklevel=3)


class Photos(NamedTuple):
    """What is known of N images, each once, beside their pixels; `numbers`: of the first row that shows each."""

    numbers: list[int]
    captions: list[list[str]]
    labels: list[list[Any]]


# --- found and opened ---


def locate(dataset: str) -> tuple[str, str]:
    """Return how a data set is read ("parquet", "imagefolder", "webdataset" or "hub") and its path or name there. Raise
    DataError for one that is none of these."""
    path, name = Path(dataset).expanduser(), PRESETS.get(dataset, dataset)
    if dataset.startswith("hf://"):  # single files on the Hub
        return "parquet", dataset
    if name != dataset or (not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(?<!\.parquet)", name)):
        return "hub", name
    kinds = {f"**/metadata.{kind}": "imagefolder" for kind in ("csv", "jsonl", "parquet")} | {"*.tar": "webdataset"}
    for pattern, kind in kinds.items():
        if dataset and path.is_dir() and any(path.glob(pattern)):
            return kind, str(path.resolve())
    if path.is_file() and path.suffix == ".parquet":
        return "parquet", str(path.resolve())
    raise DataError(
        f"data set '{dataset}' {'cannot be used' if path.exists() else 'not found'}. Give scenes, {', '.join(PRESETS)},"
        f" a name on the Hugging Face Hub (owner/name), or the path of a .parquet file, or of a folder: of images with "
        f"a metadata.csv (file_name, caption), or of .tar shards."
    )


def state(dataset: str) -> list[Any]:
    """Return what changes when a data set of files does. What was read of the Hub stays, also without a network."""
    kind, where = locate(dataset)
    stats = [(file, file.stat()) for file in sorted([Path(where), *Path(where).rglob("*")]) if file.is_file()]
    return [kind, where, [f"{file}|{stat.st_size}|{stat.st_mtime_ns}" for file, stat in stats]]


def open_source(dataset: str, image: str = "", captions: Sequence[str] | None = ()) -> Source:
    """Return all splits of a data set as one, in the order train, validation, test, others, streamed.

    `image` and `captions` name columns that are not found by themselves; with `captions` None none are needed. Raise
    DataError for a set that cannot be read, and for columns that are missing or of the wrong type.
    """
    import datasets  # takes seconds to import

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would say every error before we do
    kind, where = locate(dataset)
    literal = where if where.startswith("hf://") else re.sub(r"([*?\[])", r"[\1]", where)  # no pattern in a file's name
    files = {"parquet": literal, "imagefolder": f"{literal}/**", "webdataset": f"{literal}/*.tar"}.get(kind)
    try:
        splits = datasets.load_dataset(kind if files else where, data_files=files, streaming=True)
        order = sorted(splits, key=lambda name: (*SPLITS, name).index(name))
        rows = datasets.concatenate_datasets([splits[name] for name in order])
        if not rows.features:
            raise ValueError("its columns are known only after reading it all")
    except Exception as error:  # pyarrow, fsspec, HTTP and datasets raise errors of dozens of kinds
        said = f"{where}: cannot be read ({type(error).__name__}: {error!s:.200}). Copy the file again; for a set on"
        raise DataError(f"{said} the Hub check its name, the network and `hf auth login`.") from error
    for name, feature in dict(rows.features).items():  # decoded here: a broken image must cost one row only
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    image, texts, label = _columns(rows.features, where, image, captions)
    kind_of_label = getattr(rows.features.get(label), "feature", rows.features.get(label))
    return Source(where, rows, image, texts, label, getattr(kind_of_label, "names", None) or ())


def _columns(features: Any, where: str, image: str, captions: Sequence[str] | None) -> tuple[str, list[str], str]:
    """Return the image column, the caption columns and the label column: those that are named, else the usual ones."""
    kinds = {name: getattr(feature, "feature", feature) for name, feature in features.items()}  # of elements
    flat = ("Value", "ClassLabel", "Image")  # what is deeper than a list of these is "" below
    kinds = {name: kind.dtype if type(kind).__name__ in flat else "" for name, kind in kinds.items()}
    typed = [name for name, kind in kinds.items() if kind.startswith("PIL")]
    usual = [name for name in IMAGE_NAMES if name in (typed or kinds)]  # a `mask` is not what is trained on
    names = [image] if image else usual[:1] or (typed if len(typed) == 1 else [])
    numbered = sorted((name for name in kinds if re.fullmatch(r"caption_\d+", name)), key=lambda name: int(name[8:]))
    texts = list(captions or ()) or [name for name in CAPTION_NAMES if name in kinds][:1] or numbered
    for what, found in (("image", names), ("captions", texts)) if captions is not None else (("image", names),):
        if not found or set(found) - kinds.keys():
            missing = "".join(f" '{name}'" for name in found if name not in kinds)
            raise DataError(
                f"{where}: no {what} column{missing}. Its columns are {', '.join(kinds)}. Name the right one: --{what} "
                f"with ./run_all.sh, or the parameter `{what}` in a notebook (several with commas between them)."
            )
    for name in texts if captions is not None else ():
        if "string" not in kinds[name]:
            raise DataError(f"{where}: column '{name}' holds {features[name]}, expected text or lists of text.")
    labels = [name for name in ("label", "labels") if kinds.get(name) and name not in (*typed, *texts)]
    return names[0], texts if captions is not None else [], labels[0] if labels else ""


# --- decoded ---


def decode_image(cell: Any) -> Image.Image:
    """Return the picture of an image cell ({"bytes", "path"}, bytes or a path), in RGB and at its own size; what is
    transparent becomes white. Raise as Pillow does."""
    content = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
    if not content or (isinstance(content, str) and not os.path.isfile(content)):
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


def stream(
    source: Source, make: Callable[[Image.Image], Any], tally: Tally, only: Collection[int] | None = None
) -> Iterator[Row]:
    """Yield the usable rows, or `only` those with some numbers, decoded on all cores; `make` turns each picture into
    what is kept. What was read and skipped is counted in `tally`. Raise DataError where reading breaks off."""
    columns = dict.fromkeys([source.image, *source.captions, *filter(None, [source.label])])
    bar = tqdm(desc="reading", unit=" rows", file=sys.stdout, leave=False, delay=2)
    with ThreadPoolExecutor() as pool, bar:
        for batch in _batches(source, list(columns)):
            wanted = {n: row for n, row in enumerate(batch, tally.rows) if only is None or n in only}
            made = list(pool.map(partial(_usable, source=source, make=make), wanted.values()))
            tally.rows += len(batch)
            bar.update(len(batch))
            found = dict(zip(wanted, made, strict=True))
            tally.broken += [f"row {n}: {one}" for n, one in found.items() if isinstance(one, str)]
            yield from (Row(n, *one) for n, one in found.items() if not isinstance(one, str))


def _batches(source: Source, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield some columns of all rows in lists, undecoded."""
    done = 0
    try:
        for batch in source.rows.select_columns(columns).iter(batch_size=BATCH):
            yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            done += BATCH
    except Exception as error:  # pyarrow's and the network's errors of many kinds
        said = f"{source.where}: reading stopped after {done} rows ({error!s:.200})"
        raise DataError(f"{said}. A file is damaged or empty, or the network failed: copy it again.") from error


def column(source: Source, name: str) -> list[Any]:
    """Return one column of all rows."""
    return [row[name] for batch in _batches(source, [name]) for row in batch]


def _usable(row: dict[str, Any], source: Source, make: Callable) -> tuple[Any, list[str], list[Any]] | str:
    """Return what `make` makes of the picture, the captions and the labels of a row, or what is wrong with it."""
    listed = {name: cell if isinstance(cell, list) else [cell] for name, cell in row.items()}
    texts = [text.strip() for name in source.captions for text in listed[name] if isinstance(text, str)]
    texts = [text for text in texts if any(one.isprintable() and one != " " for one in text)]  # what shows
    if source.captions and not texts:
        return "no caption that is not empty"
    labels = [one for one in listed.get(source.label, ()) if one == one and one not in (None, "")]
    cell = row[source.image]
    try:
        return make(decode_image(cell)), texts, labels
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … on damaged files
        path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
        return f"{path or 'its picture'} cannot be read ({type(error).__name__}: {error})"


def gather(rows: Iterable[Row], pixels: BinaryIO, most: int | None = None) -> Photos:
    """Write the pixels of every different image to a file, and return what is known of them; end after `most` images.
    Of equal images the first one is kept, with the captions of all where every row has one caption, else its own."""
    seen: dict[bytes, tuple[int, list[Any], list[list[str]]]] = {}  # digest of an image -> number, labels, captions
    for row in rows:
        digest = hashlib.sha256(content := row.image.tobytes()).digest()
        if digest not in seen:
            pixels.write(content)
        seen.setdefault(digest, (row.number, row.labels, []))[2].append(row.captions)
        if len(seen) == most:
            break
    numbers, labels, texts = map(list, zip(*seen.values(), strict=True)) if seen else ([], [], [])
    alone = all(len(own) == 1 for many in texts for own in many)
    captions = [list(dict.fromkeys(own[0] for own in many)) if alone else many[0] for many in texts]
    return Photos(numbers, [own[:MAX_CAPTIONS] for own in captions], labels)
