"""The rows of an opened source, decoded: a square uint8 image, its captions, its label.

Pillow decodes here, not `datasets`: a broken image then costs one row instead of the whole set, and is named.
"""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lib.sources import DataError, Source, first_line


class Row(NamedTuple):
    """One row of a source; `problem` is "" or the reason why the row cannot be used."""

    pair_id: int
    image: np.ndarray | None  # uint8 [3, pixels, pixels]
    captions: list[str]
    label: int  # -1: unknown
    problem: str


def read_rows(source: Source, pixels: int, batch: int = 512) -> Iterator[Row]:
    """Decode a source in its own order, `batch` rows in memory at a time, on all cores.

    A row that cannot be used comes with its problem. Raises DataError when the source itself breaks off.
    """
    rows = _raw_rows(source)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(rows, batch)):
            yield from pool.map(lambda numbered: _read_row(source, pixels, *numbered), chunk)


def _raw_rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    pair_id = -1
    try:
        for pair_id, row in enumerate(row for part in source.parts for row in part):
            yield pair_id, row
    except Exception as error:  # pyarrow's and the network's errors of many kinds
        raise DataError(
            f"{source.place.target}: cannot be read after row {pair_id} ({type(error).__name__}: {first_line(error)}). "
            f"The file may be incomplete: copy or download it again."
        ) from error


def _read_row(source: Source, pixels: int, pair_id: int, row: dict[str, Any]) -> Row:
    values = [row[name] for name in source.captions]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    captions = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    label = row[source.label] if source.label and row[source.label] is not None else -1
    cell = row[source.image]
    try:
        image = decode_image(cell, pixels)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error … on damaged files
        file = f" ({cell['path']})" if isinstance(cell, dict) and cell.get("path") else ""
        reason = "no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else first_line(error)
        return Row(pair_id, None, captions, label, f"row {pair_id}{file}: {reason}")
    return Row(pair_id, image, captions, label, "" if captions else f"row {pair_id}: no caption that is not empty")


def decode_image(cell: Any, pixels: int) -> np.ndarray:
    """uint8 [3, pixels, pixels] of an image cell ({"bytes", "path"}, bytes, or a path).

    The shorter side is resized to `pixels` (bicubic, antialiased) and the centre kept. Transparent parts become white;
    grey, CMYK and palette images become RGB. Raises what Pillow raises.
    """
    content = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
    if not content:
        raise ValueError("there is no image")
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion cuts off instead of scaling
            image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        square = ImageOps.fit(image.convert("RGB"), (pixels, pixels), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
