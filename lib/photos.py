"""Photographs with captions or labels: a data set is found and opened, its rows are decoded and gathered.

A data set is a file or a folder of files (parquet, WebDataset shards, lists that name pictures), or a name on the
Hugging Face Hub. Rows without a usable picture or caption are skipped and counted."""

import ast
import csv
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.spatial import cKDTree
from tqdm import tqdm

# Short names of data sets on the Hub. COCO's training pictures have five captions, those of CC3M have one.
PRESETS = {"flickr8k": "jxie/flickr8k", "coco": "Multimodal-Fatima/COCO_captions_train", "cc3m": "pixparse/cc3m-wds"}
# Columns that are found by themselves, in upper or lower case, the first one of these; caption_0, … come before `text`
CAPTION_NAMES = ("captions", "caption", "sentences_raw", "sentences", "text", "txt", "title", "alt_text", "prompt")
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "file_name")
SPLITS = ("train", "validation", "valid", "val", "dev", "test")  # in this order, then all others
MAX_DAMAGED, MAX_MISSING = 0.01, 0.5  # largest shares of rows with a damaged picture, and without one or a caption
HOPELESS = 1000  # reading ends after that many rows if none can be used: a set on the Hub may have millions
SEVERAL_LINES = 0.9  # where that share of the texts has several lines, each line is a caption
MAX_CAPTIONS = 10  # of an image; one placeholder image of thousands of rows would widen the tokens of all
NEAR = 4  # of 255: a JPEG of quality 10 differs by less from its Flickr8k picture, other pictures there by 8 or more
BATCH = 256  # rows decoded at a time
QUOTED = re.compile(r"""b?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)  # a text in Python's quotes
LIST = re.compile(r"(array\()?[\[({](np\.str_|None|nan|[\s,()\[\]])*[\])}](,\s*dtype=\S+\))?")  # a list without them
SIGNS = {b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull`"}  # how files begin that are no pictures
SIGNS |= dict.fromkeys((b"<!doctype", b"<html", b"<head", b"<!--"), "an HTML page: download the file again")
SIGNS |= dict.fromkeys((b"<?xml", b"<svg"), "an SVG or other XML file: convert it to PNG")
SIGNS |= {b"\x1f\x8b": "compressed: gunzip it", b"%pdf": "a PDF: convert it to PNG"}
csv.field_size_limit(sys.maxsize)
ON_HUB = """Check its name, the network and `hf auth login`. To choose one of several configurations, write
hf://datasets/OWNER/NAME@refs/convert/parquet/CONFIGURATION/*/*.parquet"""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # large pictures are decoded all the same

Rows = list[dict[str, Any]]
Place = tuple[str, ...]  # a column, and the keys below it, such as ("sentences", "raw")
Places = tuple[list[Place], list[Place], str]  # of pictures, of captions, and the column of labels
# Yields all rows in batches, with the folder from which they name pictures; some columns, or with [] all of them
Reader = Callable[[Sequence[str]], Iterator[tuple[Path, Rows]]]


def printable(text: object, most: int = 100_000) -> str:
    """Return a text on one line of at most `most` characters, without escape codes and addresses of objects."""
    plain = re.sub(r"\x1b(\[[0-9;?]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\))| at 0x[0-9a-f]+", "", str(text))
    plain = "".join(one if one.isprintable() else " " for one in plain)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


class DataError(ValueError):
    """A data set cannot be used; the message, on one line, says what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Source(NamedTuple):
    """An opened data set, undecoded, and where in a row its parts are."""

    where: str  # its path, or its name on the Hub
    read: Reader
    columns: Sequence[str]
    images: Sequence[Place]  # the first that a row has is its picture: shards may mix jpg and png
    captions: Sequence[Place]  # empty: none are needed
    label: str = ""  # "": none
    class_names: Sequence[str] = ()  # of the class ids 0, 1, …, where the source tells them
    lines: bool = False  # whether each line of a text is a caption
    total: Callable[[], float] = lambda: float("inf")  # the number of rows, where they are counted


class Row(NamedTuple):
    """One usable row; `image` is what was made of its picture, such as uint8 [3, pixels, pixels]."""

    number: int  # from 0
    image: Any
    captions: list[str]
    labels: list[Any]  # empty: none known


@dataclass
class Tally:
    """How many rows were read, how many were skipped, and why."""

    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    examples: list[str] = field(default_factory=list)

    def check(self, source: Source, ended: bool = False) -> None:
        """Raise DataError as soon as it is certain that too many rows are skipped; warn of them when all are read."""
        total, damaged = self.skipped.total(), self.skipped["damaged"]
        too_many = lambda rows: damaged > MAX_DAMAGED * rows or total > MAX_MISSING * rows or not rows  # noqa: E731
        said = f"{source.where}: {self or 'no rows'}: {'; '.join(self.examples)}"
        if too_many(self.rows) and (ended or total == self.rows >= HOPELESS or too_many(source.total())):
            most = f"{MAX_DAMAGED:.0%} may be damaged, and {MAX_MISSING:.0%} lack a picture or a caption"
            raise DataError(f"{said}. At most {most}: repair or remove such rows.")
        if total and ended:
            warnings.warn(said, stacklevel=3)

    def __str__(self) -> str:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.skipped.items())
        return f"{self.skipped.total():,} of {self.rows:,} rows skipped ({reasons})" if reasons else ""


class Photos(NamedTuple):
    """What is known of N images, each once, beside their pixels."""

    numbers: list[int]  # of the first row that shows each
    captions: list[list[str]]
    labels: list[list[Any]]
    said: list[str]  # what was merged or left out


# --- found ---
def locate(dataset: str) -> tuple[str, list[Path]]:
    """Return a data set's path and its files, ordered by split; or its name on the Hub, and none. Raise DataError."""
    path, name = Path(os.path.abspath(os.path.expanduser(dataset))), PRESETS.get(dataset, dataset)
    if name != dataset and path.exists():
        raise DataError(f"'{dataset}' is a set on the Hub and a path: write {name} or ./{dataset}")
    on_hub = not path.exists() and path.suffix.lower() not in READERS and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    if name != dataset or dataset.startswith("hf://") or on_hub:  # hf:// names single files there
        return name, []
    walked: list[Path] = []
    seen, hidden = set[str](), re.compile(r"(.*/)?(\.|__MACOSX/)")  # such as .ipynb_checkpoints
    for top, folders, names in os.walk(path, followlinks=True) if dataset else ():
        real = {name: os.path.realpath(Path(top, name)) for name in folders}  # links may lead in circles
        folders[:] = [name for name in sorted(folders) if real[name] not in seen]
        seen |= set(real.values())
        walked += [Path(top, name) for name in names]
    walked = [one for one in walked if not hidden.match(str(one.relative_to(path)))]
    files = [path] if path.is_file() else [*{os.path.realpath(one): one for one in walked[::-1]}.values()]  # each once
    usable = [(file, file.suffix.lower()) for file in files if file.suffix.lower() in READERS]
    shards, tables = ([file for file, kind in usable if kind in kinds] for kinds in ((".tar",), PARQUET))
    if found := shards or [file for file, _ in usable if file.stem == "metadata" or file == path] or tables:
        words = {file: re.split("[^a-z]+", str(file.relative_to(path)).lower()) for file in found}
        return str(path), sorted(found, key=lambda file: ([name not in words[file] for name in SPLITS], file))
    said = " (save_to_disk wrote it: use to_parquet)" * ("state.json" in [one.name for one in walked])
    said = f"data set '{dataset}' {'cannot be used' if path.exists() else 'not found'}{said}. Give scenes, "
    said += f"{', '.join(PRESETS)}, a name on the Hub (owner/name), or a path: of a file {', '.join(READERS)} "
    raise DataError(f"{said}or of a folder with .tar or .parquet files, or with images and a metadata.csv or .jsonl.")


def endless(dataset: str) -> bool:
    """Return whether a data set, of shards or on the Hub, may be so large that no more is read than is needed."""
    return all(file.suffix.lower() == ".tar" for file in locate(dataset)[1])


def state(dataset: str) -> list[Any]:
    """Return what changes with a file of a data set, or with a picture that it names; what the Hub had stays."""
    where, files = locate(dataset)
    named: list[Path] = []
    for file in files:
        with suppress(OSError, ValueError):  # a damaged file is refused when it is opened
            named += [_path(file.parent, text) for text in _texts(file)]
    used = [(file, os.stat(file)) for file in dict.fromkeys([*files, *named]) if os.path.isfile(file)]
    return [where, [f"{file}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}" for file, stat in used]]


def _texts(file: Path) -> Iterator[str]:
    """Yield every text in a table, of which some may be paths."""
    columns, kind = [""], file.suffix.lower()
    if kind in PARQUET:  # Arrow has several types of text, parquet has one
        columns = [leaf.path for leaf in pq.ParquetFile(file).schema if leaf.logical_type.type == "STRING"]
    left: list[Any] = [*READERS[kind](file, columns)] if columns and kind != ".tar" else []
    while left:
        cell = left.pop()
        cell = _parsed(cell) if isinstance(cell, str) and cell[:1] == "{" else cell
        left += cell.values() if isinstance(cell, dict) else cell if isinstance(cell, list) else ()
        if isinstance(cell, str):
            yield cell


def _path(folder: Path, text: str) -> Path:
    """Return a path that a file in `folder` names, perhaps as Windows or a browser writes it."""
    text = text.removeprefix("file://")
    return Path(folder, text if os.path.isfile(Path(folder, text)) else text.replace("\\", "/"))


# --- read ---
def _read_parquet(file: Path, columns: Sequence[str]) -> Iterator[Rows]:
    with pq.ParquetFile(file) as opened:
        _each_once(opened.schema_arrow.names, file)
        for batch in opened.iter_batches(BATCH, columns=columns or None):
            yield batch.to_pylist(maps_as_pydicts="lossy")


def _read_list(file: Path, columns: Sequence[str]) -> Iterator[Rows]:
    """Yield the rows of a .csv or .tsv file, every cell a text, or of a .jsonl file, with all columns."""
    content, rows, line, names, rule = file.read_bytes(), [], 1, list[str](), "Each line must be one JSON object"
    try:
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if file.suffix.lower() == ".jsonl":
            for line, record in enumerate(text.split("\n"), 1):  # noqa: B007
                rows += [{**json.loads(record)}] if record.strip() else []
        else:
            text = re.sub(r"\A[ \r\n]*(sep=.\s*\n)?[ \r\n]*", "", text)  # Excel's own line
            separator = max(",;\t|", key=text.partition("\n")[0].count)
            rule = f"A cell with '{separator}' or quotes in it needs quotes around it, and quotes in it are doubled"
            cells = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
            names = ",".join(one.strip().replace(",", ".") for one in next(cells, [])).rstrip(",").split(",")
            line = cells.line_num + 1
            for own in cells:
                if any(own[len(names) :]):
                    raise ValueError("more cells than columns")
                rows += [dict(zip(names, map(str.strip, own), strict=False))] if any(own) else []
                line = cells.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not in UTF-8: save it again, in Excel as 'CSV UTF-8'.") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{file}, line {line}: {error}. {rule}.") from error
    _each_once(names, file)
    yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


def _read_tar(file: Path, columns: Sequence[str]) -> Iterator[Rows]:
    """Yield the samples of a WebDataset shard, files with the same key; they need not follow each other."""
    with tarfile.open(file, "r:") as tar:
        members: list[tuple[str, str, tarfile.TarInfo]] = []
        with suppress(tarfile.ReadError):  # what is damaged is named below
            members += ((*os.path.split(os.path.normpath(one.name)), one) for one in tar if one.isfile() or one.islnk())
        members = [one for one in members if not one[1].startswith(".")]  # which macOS adds
        rest = np.memmap(file, np.uint8, "r")[tar.offset :]  # two blocks of zeros, and few more; else tarfile gave up
        if not 1024 <= len(rest) <= 1 << 16 or rest.any():
            raise DataError(f"{file} is damaged or cut off after {tar.offset:,} bytes: copy it again.")
        # A key ends at the first dot, or at the last one where keys with dots would give dozens of columns
        rest_of = [name.partition(".")[2] for _, name, _ in members]
        numbered = sum(bool(re.match(r"\d+\.", one)) for one in rest_of) > len(members) / 2
        dots = numbered or len({*rest_of}) > min(20, max(8, len(members) * 3 // 4))
        samples: dict[tuple[str, str], dict[str, tarfile.TarInfo]] = {}
        for folder, name, member in members:
            key, _, column = name.rpartition(".") if dots else name.partition(".")
            samples.setdefault((folder, key), {})[column.lower()] = member
        rows = list(samples.values())
        for start in range(0, len(rows), BATCH):
            part = [{n: one for n, one in own.items() if n in (columns or own)} for own in rows[start : start + BATCH]]
            yield [{n: tar.extractfile(one).read() for n, one in own.items()} for own in part]  # type: ignore[union-attr]


PARQUET = (".parquet", ".pq")
READERS = dict.fromkeys(PARQUET, _read_parquet) | dict.fromkeys((".csv", ".tsv", ".jsonl"), _read_list)
READERS |= {".tar": _read_tar}


def _each_once(columns: Sequence[str], file: Path) -> None:
    if twice := [name for name, n in Counter(columns).items() if n > 1]:
        raise DataError(f"{file} has two columns '{printable(twice[0], 80)}': rename or remove one of them.")


# --- opened ---
def open_source(dataset: str, image: str = "", captions: Sequence[str] | None = ()) -> Source:
    """Return all files or splits of a data set as one, in the order train, validation, test, others, streamed. `image`
    and `captions` name columns that are not found by themselves, with dots what is nested in them, such as
    sentences.raw; with `captions` None none are needed. Raise DataError for a set that cannot be read, and for columns
    that are missing or hold something else."""
    where, files = locate(dataset)
    try:
        read, classes = _open_files(files) if files else _open_on_hub(where)
        rows: Rows = next(read([]), (Path(), []))[1]
    except DataError:
        raise
    except Exception as error:  # pyarrow, tarfile, fsspec, HTTP and datasets raise errors of dozens of kinds
        said = f"{where}: cannot be read ({type(error).__name__}: {printable(error, 200)}). "
        raise DataError(said + ("It is damaged or empty: copy it again." if files else ON_HUB)) from error
    if not any(rows):
        raise DataError(f"{where} holds no rows.")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    images, places, label = _columns(rows, columns, where, image, captions)
    total = cache(lambda: sum(len(part) for _, part in read(["none"]))) if files else lambda: float("inf")
    cells = [one for row in rows for place in places for one in values(row.get(place[0]), place[1:])]
    several = [len(one.strip().splitlines()) > 1 for one in cells if isinstance(one, (str, bytes))]
    lines = sum(several) >= SEVERAL_LINES * max(1, len(several))
    return Source(where, read, columns, images, places, label, classes.get(label, ()), lines, total)


def _open_files(files: Sequence[Path]) -> tuple[Reader, dict[str, list[str]]]:
    """Return how local files are read, and the names of classes by column."""
    features: dict[str, Any] = {}
    for file in files:
        content = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
        if said := sign(content[:64].tobytes()):
            raise DataError(f"{file} is {said}.")
        if file.suffix.lower() in PARQUET:
            about = json.loads((pq.read_schema(file).metadata or {}).get(b"huggingface", b"{}"))
            features |= about.get("info", {}).get("features", {})
    classes = {name: one.get("names") or one.get("feature", {}).get("names") or [] for name, one in features.items()}
    kinds = [(file, READERS[file.suffix.lower()]) for file in files]
    return lambda columns: ((file.parent, batch) for file, read in kinds for batch in read(file, columns)), classes


def _open_on_hub(where: str) -> tuple[Reader, dict[str, list[str]]]:
    """Return the same for a set on the Hub."""
    import datasets  # takes seconds to import

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would say every error before we do
    files = {"path": "parquet", "data_files": where} if where.startswith("hf://") else {"path": where}
    splits = datasets.load_dataset(**files, streaming=True)
    order = sorted(splits, key=lambda name: (*SPLITS, name).index(name))
    rows = datasets.concatenate_datasets([splits[name] for name in order]).decode(False)  # broken: one row is lost
    features = {name: getattr(kind, "feature", kind) for name, kind in (rows.features or {}).items()}

    def read(columns: Sequence[str]) -> Iterator[tuple[Path, Rows]]:
        known = [name for name in columns if name in features]
        for batch in (rows.select_columns(known) if columns else rows).iter(BATCH):
            yield Path(), [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]

    return read, {name: getattr(kind, "names", None) or [] for name, kind in features.items()}


def _columns(rows: Rows, columns: Sequence[str], where: str, image: str, captions: Sequence[str] | None) -> Places:
    """Return where pictures, captions and the label are: in the columns that are named, else in the usual ones."""

    def usual(names: Sequence[str], among: Collection[str]) -> list[str]:
        return sorted((one for one in among if one.lower() in names), key=lambda one: names.index(one.lower()))

    held = {name: [one for row in rows for one in values(row.get(name)) if one is not None] for name in columns}
    binary = [name for name in columns if any(isinstance(one, bytes) or _held(one) is not one for one in held[name])]
    textual = [name for name in columns if any(isinstance(one, (str, bytes)) for one in held[name])]
    images = [image] if image else usual(IMAGE_NAMES, binary) or usual(IMAGE_NAMES, columns)  # not a `mask`
    images = images or binary * (len(binary) == 1)
    numbered = [one for one in columns if re.fullmatch(r"caption_?\d+", one.lower())]
    numbered.sort(key=lambda one: int(re.sub(r"\D", "", one)))
    found = usual(CAPTION_NAMES, textual) or usual(CAPTION_NAMES, columns)
    found = numbered if numbered and not {*map(str.lower, found)} & {*CAPTION_NAMES[:2]} else found[:1]
    named = [] if captions is None else list(captions) or found
    for what, wanted in {"image": images, "captions": named}.items():
        missing = [one for one in wanted or [""] if not _place(one, columns)]
        if missing and (what, captions) != ("captions", None):
            shown = ", ".join(printable(one, 40) for one in columns[:10]) + ", …" * (len(columns) > 10)
            said = f"{where}: no {what} column" + f" '{missing[0]:.80}'" * bool(missing[0])
            how = f"--{what}, or the parameter `{what}` of a notebook (several: a,b; nested: json.caption)"
            raise DataError(f"{said}. Its columns are {shown}. Name the right one: {how}.")
    for name, place in [(one, _place(one, columns)) for one in named]:
        cells = [one for row in rows for one in values(row.get(place[0]), place[1:]) if one is not None]
        records = [one for cell in cells[:10] for one in values(_parsed(cell)) if isinstance(one, dict)]
        if records or (cells and not any(isinstance(one, (str, bytes)) for one in cells)):
            keys = [key for one in records[:1] for key in sorted(one, key=lambda k: not isinstance(one[k], str))]
            parts = f" Name a part of it, such as {name}.{keys[0]}." if keys else ""
            shown = printable(repr((records or cells)[0]), 80)
            said = f"{where}: column '{name}' holds {shown}, expected text or lists of text."
            raise DataError(said + parts)
    flat = [name for name in columns if held[name] and not any(isinstance(one, (dict, bytes)) for one in held[name])]
    labels = [name for name in usual(("label", "labels"), flat) if name not in (*images, *named)]
    places = [_place(one, columns) for one in (*images, *named)]
    others = [(one,) for one in IMAGE_NAMES if one not in images and not image]  # may come later in shards
    return places[: len(images)] + others, places[len(images) :], (labels or [""])[0]


def _place(name: str, columns: Sequence[str]) -> Place:
    """Return the column that a dotted name begins with, and the keys below it; () where there is none."""
    parts = name.split(".")
    ends = [end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in columns]
    return (".".join(parts[: ends[0]]), *parts[ends[0] :]) if ends else ()


def _parsed(cell: Any) -> Any:
    """Return what a text holds as JSON or as Python writes it, any other cell as it is."""
    for parse in (json.loads, ast.literal_eval) if isinstance(cell, (str, bytes)) else ():
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(cell)
    return cell


def values(cell: Any, keys: Sequence[str] = ()) -> list[Any]:
    """Return what a cell holds below some keys, lists flattened; a text is JSON where keys are asked of it."""
    if isinstance(cell := _parsed(cell) if keys else cell, (list, tuple)):
        return [one for part in cell for one in values(part, keys)]
    return [cell] if not keys else values(cell.get(keys[0]), keys[1:]) if isinstance(cell, dict) else []


def texts(row: dict[str, Any], place: Place, lines: bool) -> list[str]:
    """Return the captions at a place of a row: elements of a list, also of one written as text, and perhaps `lines`."""
    found: list[str] = []
    for text in values(row.get(place[0]), place[1:]):
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if isinstance(text, str):
            found += _listed(text.strip()) or (text.splitlines() if lines else [text])
    found = [text.strip("\ufeff \t\r\n").encode("utf-8", "replace").decode() for text in found]  # half an emoji: ?
    return [text for text in found if any(one.isprintable() and one != " " for one in text)]  # what shows


def _listed(text: str) -> list[str]:
    """Return the texts of a list as JSON, Python or NumPy write it, [""] of an empty one, [] of any other text."""
    written = [QUOTED.findall(text)] if LIST.fullmatch(QUOTED.sub("", text)) else []
    with suppress(ValueError, SyntaxError, RecursionError):
        if text[:1] in ("[", "{"):
            return [one for one in values(json.loads(text)) if isinstance(one, str)] or [""]
    with suppress(ValueError, SyntaxError):
        found = [ast.literal_eval(one) for pieces in written for one in pieces or ["''"]]
        return [one.decode() if isinstance(one, bytes) else one for one in found]
    return []


# --- decoded ---
def _held(cell: Any) -> Any:
    """Return the bytes or the path of a picture that `datasets` stored, any other cell as it is."""
    stored = isinstance(cell, dict) and not {"bytes", "path"}.isdisjoint(cell)
    return (cell.get("bytes") or cell.get("path")) if stored else cell


def decode_image(cell: Any, folder: Path = Path()) -> Image.Image:
    """Return the picture of an image cell (bytes, a path from `folder`, {"bytes", "path"}, or a list of one of these)
    in RGB, at its own size, on white. Raise ValueError for other cells, else what Pillow raises."""
    content = _held(cell[0] if isinstance(cell, list) and len(cell) == 1 else cell)
    shown = printable(repr(content), 60)
    if isinstance(content, str) and re.match(r"(?!file:)\w+://", content):
        raise ValueError(f"{shown} is an address: download the pictures first, for example with img2dataset")
    if isinstance(content, str) and re.fullmatch(r"data:.*|[\w+/\s=-]{200,}", content):
        raise ValueError(f"{shown} is base64 text: decode it, and store the bytes")
    if isinstance(content, str):
        if not os.path.isfile(path := _path(folder, content)):
            raise ValueError(f"there is no file {shown} in {folder.resolve()}")
        content = path.read_bytes()
    if not isinstance(content, bytes):
        raise ValueError(f"{shown} is not the bytes or the path of one picture, but perhaps a list or an array")
    try:
        opened = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError(f"it is {sign(content) or f'nothing that Pillow knows: {content[:16]!r}'}") from None
    with opened as file:
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode[0] in "IF":  # grey beyond 8 bits, or real numbers: Pillow would cut these off, not scale them
            grey = np.nan_to_num(np.asarray(image, float), posinf=0, neginf=0)
            low, high = min(0, grey.min()), grey.max()
            high = next((limit for limit in (1, 255, 4095, 65535) if high <= limit and not low), high)
            image = Image.fromarray(((grey - low) * (255 / ((high - low) or 1))).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def sign(content: bytes) -> str:
    """Return what a file is by its first bytes, where these are those of a usual mistake, else ""."""
    start = content[:64].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if content[4:8] == b"ftyp" and content[8:11] in (b"hei", b"hev", b"mif"):
        return "HEIC: convert it to JPEG"
    return next((said for first, said in SIGNS.items() if start.startswith(first)), "" if content else "empty")


def square(image: Image.Image, pixels: int) -> np.ndarray:
    """Return uint8 `[3, pixels, pixels]`: the shorter side resized (bicubic, antialiased), and the centre kept."""
    fitted = ImageOps.fit(image, (pixels, pixels), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def stream(source: Source, make: Callable, tally: Tally, only: Collection[int] | None = None) -> Iterator[Row]:
    """Yield the usable rows, or `only` those with some numbers, decoded on all cores; `make` turns a picture into what
    is kept. `tally` counts what is read and skipped. Raise DataError if reading breaks off or too many are skipped."""
    columns = dict.fromkeys([*(place[0] for place in (*source.images, *source.captions)), source.label])
    bar = tqdm(desc="reading", unit=" rows", file=sys.stdout, leave=False, delay=2)
    with ThreadPoolExecutor() as pool, bar:
        for folder, batch in _batches(source, list(filter(None, columns))):
            wanted = {n: row for n, row in enumerate(batch, tally.rows) if only is None or n in only}
            made = list(pool.map(partial(_usable, folder=folder, source=source, make=make), wanted.values()))
            tally.rows += len(batch)
            bar.update(len(batch))
            for n, one in zip(wanted, made, strict=True):
                if isinstance(one, tuple):
                    yield Row(n, *one)
                else:
                    reason, _, said = one.partition(": ")
                    tally.skipped[reason] += 1
                    tally.examples += [f"row {n}: {said or reason}"] * (tally.skipped[reason] <= 3)
            tally.check(source)


def _batches(source: Source, columns: Sequence[str]) -> Iterator[tuple[Path, Rows]]:
    """Yield some columns of all rows, undecoded."""
    done = 0
    try:
        for folder, batch in source.read(columns):
            yield folder, batch
            done += len(batch)
    except DataError:
        raise
    except Exception as error:  # pyarrow's, tarfile's and the network's errors of many kinds
        said = f"{source.where}: reading stopped after {done} rows ({printable(error, 200)})"
        raise DataError(f"{said}. A file is damaged or empty, or the network failed: copy it again.") from error


def column(source: Source, name: str) -> list[Any]:
    """Return one column of all rows."""
    return [row.get(name) for _, batch in _batches(source, [name]) for row in batch]


def _usable(row: dict[str, Any], folder: Path, source: Source, make: Callable) -> tuple[Any, list, list] | str:
    """Return what `make` makes of the picture, the captions and the labels of a row, or why it cannot be used."""
    cells = [[one for one in values(row.get(place[0]), place[1:]) if _held(one)] for place in source.images]
    labels = [one for one in values(row.get(source.label)) if one == one and one not in (None, "")]
    try:
        captions = [text for place in source.captions for text in texts(row, place, source.lines)]
        if not any(cells) or (source.captions and not captions):
            return "without a caption" if any(cells) else "without a picture"
        return make(decode_image(next(filter(None, cells)), folder)), captions, labels
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … on damaged files
        said = "its caption is not in UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error}"
        return f"damaged: {printable(said, 200)}"


def gather(rows: Iterable[Row], pixels: BinaryIO, most: int | None = None) -> Photos:
    """Write every different image to a file, at most `most`; return what is known of each from all its rows."""
    seen: dict[bytes, tuple[int, list[Any], list[str]]] = {}  # digest of an image -> number, labels, captions
    thumbs, again = [], 0
    for row in rows:
        digest = hashlib.sha256(content := row.image.tobytes()).digest()
        again += digest in seen
        if digest not in seen:
            if len(seen) == most:  # later rows may have had other captions of the same pictures
                break
            pixels.write(content)
            thumbs.append(thumb(row.image))
        seen.setdefault(digest, (row.number, row.labels, []))[2].extend(row.captions)
    numbers, labels, texts = map(list, zip(*seen.values(), strict=True)) if seen else ([], [], [])
    captions = [list(dict.fromkeys(own)) for own in texts]
    dropped, near = sum(len(own[MAX_CAPTIONS:]) for own in captions), sum(near_duplicates(thumbs) > 0)
    said = [f"rows that show a picture again, merged with it: {again:,}"] * bool(again)
    said += [f"captions beyond {MAX_CAPTIONS} of a picture, left out: {dropped:,}"] * bool(dropped)
    said += [f"pictures nearly equal to another one (the same, encoded twice?): {near:,}"] * bool(near)
    return Photos(numbers, [own[:MAX_CAPTIONS] for own in captions], labels, said)


def thumb(image: np.ndarray) -> np.ndarray:
    """Return a grey picture int16 `[16, 16]` of an image uint8 `[3, H, W]`."""
    grey = Image.fromarray(image.transpose(1, 2, 0)).convert("L")
    return np.asarray(grey.resize((16, 16), Image.Resampling.BOX), np.int16)


def near_duplicates(thumbs: Sequence[np.ndarray]) -> np.ndarray:
    """Return of how many similar ones (up to 4) each of N `thumb` pictures differs by less than NEAR in the mean."""
    fine, near = np.reshape(thumbs, (-1, 4, 4, 4, 4)), np.zeros(len(thumbs), int)
    coarse = fine.mean(axis=(2, 4)).reshape(-1, 16)  # means of 4 x 4 pixels differ by no more
    others = cKDTree(coarse).query(coarse, k=range(1, 6), p=1, distance_upper_bound=16 * NEAR)[1] if len(fine) else []
    for place in np.transpose(others):  # of the five most similar ones, itself among them; N where there are fewer
        rows = np.flatnonzero((place < len(fine)) & (place != np.arange(len(fine))))
        near[rows] += np.abs(fine[rows] - fine[place[rows]]).mean(axis=(1, 2, 3, 4)) < NEAR
    return near
