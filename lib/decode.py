"""Rows of a data set decoded, once, into an entry of the store; what an interrupted call has read is not read again.

While it is read, `rows.log` has a line for each batch of rows: its own digest, and as JSON what the rows say, the
digests of their pictures and the place behind the batch. The next call goes on after the last line that is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from lib import store
from lib.captions import DataError, encode
from lib.recipes import Data

if TYPE_CHECKING:
    from lib.sources import Columns

MAX_BROKEN = 0.01  # largest share of rows without a readable image or caption that is skipped
BATCH = 256  # rows decoded at a time
MOST_CAPTIONS = 10  # of an image; one placeholder image of thousands of rows would widen the tokens of all
Place = dict[str, Any]  # between two rows, see `read_batches`
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # large pictures are decoded all the same


class Row(NamedTuple):
    """One usable row."""

    number: int
    image: Any  # what was made of the picture, such as uint8 [3, pixels, pixels]
    captions: list[str]
    labels: list[Any]  # empty: none known


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
        said = f"{where}: reading stopped after {done} rows ({error}). A file is damaged or empty: copy it again."
        raise DataError(f"{said} From the Hub, the same command reads on.") from error


def read_batches(
    rows: Any,
    where: str,
    columns: Columns,
    make: Callable[[Image.Image], Any],
    place: Place,
    only: Collection[int] | None = None,
) -> Iterator[tuple[list[Row], Place]]:
    """Yield lists of usable rows, each with the place behind it, where another call reads on; {} is the beginning.

    Rows, or `only` those with some numbers, are decoded on all cores; `make` turns each picture into what is kept. A
    place is made of JSON: "row", the next number; "broken", how many were skipped before it, and in "problems" why the
    first ones were; and the "state" of `datasets`, which finds it again without reading all before it. Raise DataError
    where reading breaks off.
    """
    rows = rows.select_columns(list(dict.fromkeys([columns.image, *columns.captions, *filter(None, [columns.label])])))
    if "state" in place:
        rows.load_state_dict(place["state"])
    start, broken, problems = place.get("row", 0), place.get("broken", 0), place.get("problems", [])
    with ThreadPoolExecutor() as pool, tqdm(desc="reading", unit=" rows", file=sys.stdout, leave=False, delay=2) as bar:
        for batch in batches(rows, where):
            wanted = {n: row for n, row in enumerate(batch, start) if only is None or n in only}
            made = pool.map(partial(_usable, columns=columns, make=make), wanted.values())
            found = dict(zip(wanted, made, strict=True))
            wrong = [f"row {n}: {one}" for n, one in found.items() if isinstance(one, str)]
            start, broken, problems = start + len(batch), broken + len(wrong), [*problems, *wrong][:5]
            good = [Row(n, *one) for n, one in found.items() if not isinstance(one, str)]
            yield good, {"row": start, "broken": broken, "problems": problems, "state": rows.state_dict()}
            bar.update(len(batch))


def tell_broken(where: str, place: Place, first: int = 0) -> None:
    """Warn of the rows that were skipped from number `first` up to a place. Raise DataError where these are more than
    MAX_BROKEN of all, or none was read."""
    number = place.get("row", first) - first
    if not number or place["broken"]:
        problems = "; ".join(place.get("problems", []))
        said = f"{where}: {place.get('broken', 0)} of {number} rows cannot be used: {problems}"
        if not number or place["broken"] > MAX_BROKEN * number:
            raise DataError(f"{said}. At most {MAX_BROKEN:.0%} are skipped: repair or remove these rows.")
        warnings.warn(f"{said}. They are skipped.", stacklevel=3)


def read_rows(
    rows: Any, where: str, columns: Columns, make: Callable, first: int = 0, only: Collection[int] | None = None
) -> Iterator[Row]:
    """Yield every usable row, or those from number `first` on, or `only` some numbers, as `read_batches` does. Others
    are told and skipped; raise DataError where these are too many."""
    behind = place = {"row": first}
    for batch, behind in read_batches(rows.skip(first) if first else rows, where, columns, make, place, only):  # noqa: B007
        yield from batch
    tell_broken(where, behind, first)


def keep(
    folder: Path,
    read: Callable[[Place], Iterable[tuple[list[Row], Place]]],
    data: Data,
    names: Sequence[str],
    *truth: np.ndarray,
    most: int | None = None,
) -> Place:
    """Write an entry of the store: images.bin, ids.npy, table.parquet, and about what they hold, content.json.

    `read(place)` yields batches of rows, each with the place behind it. It is read to the end, or until there are
    `most` different pictures. `truth`: rarity and vagueness of each row. Return the place where reading ended.
    """
    images, journal = folder / "images.bin", folder / "rows.log"
    seen: dict[str, tuple[int, list[Any], list[list[str]]]] = {}  # digest of an image -> the number and the labels of
    place: Place = {}  # its first row, the captions of each of its rows
    with store.explained(images), images.open("ab+") as pixels, journal.open("ab+") as lines:
        for batch in _whole(pixels, lines, 3 * data.pixels**2):
            place = batch["place"]
            for number, captions, labels, own in batch["rows"]:
                seen.setdefault(own, (number, labels, []))[2].append(captions)
        for rows, behind in read(place) if len(seen) != most else ():
            taken = []
            for row in rows:
                own = hashlib.sha256(content := row.image.tobytes()).hexdigest()
                if own not in seen and len(seen) == most:
                    continue
                if own not in seen:
                    pixels.write(content)
                seen.setdefault(own, (row.number, row.labels, []))[2].append(row.captions)
                taken.append((row.number, row.captions, row.labels, own))
            pixels.flush()
            place = behind
            line = json.dumps({"place": place, "rows": taken}, default=str).encode()
            lines.write(hashlib.sha256(line).hexdigest().encode() + line + b"\n")
            lines.flush()
            if len(seen) == most:
                break
    if seen:
        _write(folder, list(seen.values()), data, names, *truth)
    journal.unlink()
    return place


def _whole(images: BinaryIO, journal: BinaryIO, size: int) -> Iterator[dict[str, Any]]:
    """Yield the batches of an interrupted call, as far as the line and its pictures are whole; cut off the rest."""
    known, end = set[str](), 0
    images.seek(0)
    journal.seek(0)
    for line in journal:
        if hashlib.sha256(line[64:-1]).hexdigest().encode() != line[:64]:
            break
        batch = json.loads(line[64:])
        new = dict.fromkeys(own for *_, own in batch["rows"] if own not in known)
        if any(hashlib.sha256(images.read(size)).hexdigest() != own for own in new):
            break
        known |= new.keys()
        end += len(line)
        yield batch
    images.truncate(len(known) * size)
    journal.truncate(end)


def _write(folder: Path, kept: Sequence[tuple], data: Data, names: Sequence[str], *truth: np.ndarray) -> None:
    """Write what an entry says of its pictures, which are there."""
    numbers, labels, texts = map(list, zip(*kept, strict=True))
    alone = all(len(own) == 1 for many in texts for own in many)
    captions = [(list(dict.fromkeys(own[0] for own in many)) if alone else many[0])[:MOST_CAPTIONS] for many in texts]
    classes, class_names = _numbered(labels, names)
    columns: dict[str, list[Any]] = {"pair_id": numbers, "captions": captions, "classes": classes}
    for name, values in zip(("rarity", "vagueness"), truth or [np.full(len(kept), np.nan)] * 2, strict=True):
        columns[name] = values.astype(float).tolist()
    with (folder / "images.bin").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([columns, class_names], sort_keys=True).encode())
    store.write_table(folder / "table.parquet", pd.DataFrame(columns))
    store.write_json(folder / "content.json", {"class_names": class_names, "fingerprint": digest.hexdigest()})
    np.save(ids := io.BytesIO(), encode(captions, max(map(len, captions)), data.context))
    store.write_bytes(folder / "ids.npy", ids.getvalue())


def _numbered(labels: list[list[Any]], names: Sequence[str]) -> tuple[list[list[int]], dict[int, str]]:
    """Return class ids of the labels of each row, and the names of the ids: integers stay, all else is numbered."""
    if all(type(one) is int and one < 2**63 for own in labels for one in own):
        return [[one for one in own if one >= 0] for own in labels], dict(enumerate(names))
    number = {text: i for i, text in enumerate(sorted({str(one) for own in labels for one in own}))}
    return [[number[str(one)] for one in own] for own in labels], dict(enumerate(number))
