"""Small captioned sets of noise pictures, written as a reader's own data would be."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = ("red", "green", "blue", "grey", "pink", "black")
THINGS = ("dog", "cat", "boat", "tree", "house", "cloud", "bicycle")


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (20, 16), form: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, form)
    return file.getvalue()


def caption(i: int, wording: int = 0) -> str:
    start = ("a photo of a", "there is one", "somebody saw a")[wording]
    return f"{start} {COLOURS[i % 6]} {THINGS[i % 7]} near number {i}"


def columns(n: int, **other: list[Any]) -> dict[str, list[Any]]:
    """Columns `image` and, unless others are given, `captions` with two captions each."""
    images = [{"bytes": picture(i), "path": None} for i in range(n)]
    return {"image": images} | (other or {"captions": [[caption(i), caption(i, 1)] for i in range(n)]})


def write_parquet(path: Path, table: dict[str, list[Any]]) -> str:
    pq.write_table(pa.table(table), path)
    return str(path)
