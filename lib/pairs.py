"""Pairs, the one shape in which every data set arrives, and their cache on disk.

A cached set is a folder `pairs/<name>-<key>` of images.npy, table.parquet and meta.json. It is found again by what was
asked for (source, its state, pixels, columns); it is written under another name and renamed, one writer at a time.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from lib.images import read_rows
from lib.progress import report
from lib.sources import DataError, Place, Source, open_source

MAX_BROKEN = 0.01  # largest share of rows without a readable image or caption that is skipped
LARGE = 2**30  # bytes of images from which they stay on disk, memory-mapped
FORMAT = 1  # raised when decoding changes: older caches are then left alone
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Pairs:
    """N images with their captions, in the order of the source; a row's place here is its row number everywhere."""

    name: str
    images: np.ndarray  # uint8 [N, 3, pixels, pixels], memory-mapped when large
    captions: list[list[str]]  # N lists of one or more non-empty captions; the first one is caption 0
    pair_ids: np.ndarray  # int64 [N], row of the source: skipped rows leave gaps
    labels: np.ndarray | None  # int64 [N], -1 unknown
    label_names: tuple[str, ...]
    rarity: np.ndarray | None  # float32 [N] in [0, 1], 1 = rarest
    vagueness: np.ndarray | None  # float32 [N, C] in [0, 1], 1 = vaguest
    fingerprint: str  # SHA-256 of the content, never of paths


def fingerprint(images: np.ndarray, captions: list[list[str]], *arrays: np.ndarray | None) -> str:
    """SHA-256 hex of images, captions and further arrays: equal content, equal fingerprint, wherever it lies."""
    digest = hashlib.sha256(json.dumps([images.shape, captions]).encode())
    for start in range(0, len(images), 1024):
        digest.update(images[start : start + 1024].tobytes())
    for array in arrays:
        digest.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def load_cached(place: Place, pixels: int, image_column: str, caption_columns: tuple[str, ...], cache: Path) -> Pairs:
    """Pairs of a source from the cache, decoded into it first when absent or damaged. Raises DataError."""
    request = {
        "format": FORMAT, "target": place.target, "columns": [image_column, *caption_columns], "pixels": pixels,
        "identity": place.identity,
    }  # fmt: skip
    if place.problem and (earlier := newest_cached(cache, place, image_column, caption_columns, pixels)):
        warnings.warn(f"the hub cannot be reached ({place.problem}); using the copy in {earlier}", stacklevel=2)
        request = json.loads((earlier / "meta.json").read_text())["request"]
    key = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:16]
    folder = cache / "pairs" / f"{place.name}-{pixels}px-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        found = _read(folder, place.name)
        if found is None:
            _build(folder, open_source(place, image_column, caption_columns), pixels, request)
            found = _read(folder, place.name)
    if found is None:
        raise DataError(f"{folder}: what was just written there cannot be read back. Check that disk.")
    return found


def newest_cached(
    cache: Path, place: Place, image_column: str, caption_columns: tuple[str, ...], pixels: int | None = None
) -> Path | None:
    """The latest cached folder of a source, whatever its state was then, or None. `pixels` None: any size."""
    wanted = {"format": FORMAT, "target": place.target, "columns": [image_column, *caption_columns]}
    wanted |= {"pixels": pixels} if pixels else {}
    found = []
    for meta in cache.glob("pairs/*/meta.json"):
        with contextlib.suppress(ValueError, KeyError, AttributeError):  # a damaged one is no candidate
            if wanted.items() <= json.loads(meta.read_text())["request"].items():
                found.append(meta)
    return max(found, key=lambda meta: meta.stat().st_mtime).parent if found else None


def _read(folder: Path, name: str) -> Pairs | None:
    """The cached pairs, or None when they are absent or damaged: then they are decoded again."""
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        small = (folder / "images.npy").stat().st_size < LARGE
        images = np.load(folder / "images.npy", mmap_mode=None if small else "c")  # "c": torch wants it writable
        table = pq.read_table(folder / "table.parquet")
        captions = table["captions"].to_pylist()
        ids = np.array(table["pair_id"], np.int64)
        labels = np.array(table["label"], np.int64) if "label" in table.column_names else None
        if list(images.shape) != meta["shape"] or len(table) != len(images):
            raise ValueError("shapes differ from meta.json")
        if small and fingerprint(images, captions, ids, labels) != meta["fingerprint"]:
            raise ValueError("content differs from meta.json")
        return Pairs(name, images, captions, ids, labels, tuple(meta["label_names"]), None, None, meta["fingerprint"])
    except (OSError, ValueError, KeyError, EOFError, pa.ArrowException) as error:
        warnings.warn(f"{folder} is damaged ({error}); decoding again", stacklevel=2)
        return None


def _build(folder: Path, source: Source, pixels: int, request: dict[str, Any]) -> None:
    """Decode `source` into `folder`, which appears complete or not at all."""
    needed = (source.rows or 0) * (3 * pixels**2 + 500)  # captions take a few hundred bytes a row
    if shutil.disk_usage(folder.parent).free < needed:
        raise _disk_full(folder, needed)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        with open(part / "images.npy", "wb") as file:
            rows = _write_images(file, source, pixels)
        ids, captions, labels = zip(*rows, strict=True)
        table = pa.table({"pair_id": ids, "captions": captions} | ({"label": labels} if source.label else {}))
        pq.write_table(table, part / "table.parquet")
        images = np.load(part / "images.npy", mmap_mode="r")
        arrays = (np.array(ids, np.int64), np.array(labels, np.int64) if source.label else None)
        content = fingerprint(images, list(captions), *arrays)
        meta = {
            "request": request, "shape": images.shape, "label_names": source.label_names, "fingerprint": content,
        }  # fmt: skip
        (part / "meta.json").write_text(json.dumps(meta, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise _disk_full(folder, needed) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_images(file: BinaryIO, source: Source, pixels: int) -> list[tuple[int, list[str], int]]:
    """Write the usable images as one .npy and return (pair_id, captions, label) of each.

    Raises DataError when more than MAX_BROKEN of the rows cannot be used, or none can.
    """
    _write_header(file, 0, pixels)
    kept, problems = [], []
    for row in read_rows(source, pixels):
        if row.image is None or row.problem:
            problems.append(row.problem)
        else:
            file.write(row.image.tobytes())
            kept.append((row.pair_id, row.captions, row.label))
        if row.pair_id % 256 == 0:
            report("decoding images", row.pair_id, source.rows or row.pair_id + 1)
    total = len(kept) + len(problems)
    report("decoding images", total, total)
    found = f"{source.place.target}: {len(problems)} of {total} rows cannot be used: {'; '.join(problems[:5])}"
    found += "; …" if len(problems) > 5 else ""
    if not kept or len(problems) > MAX_BROKEN * total:
        raise DataError(f"{found}. At most {MAX_BROKEN:.0%} are skipped: repair or remove these rows.")
    if problems:
        warnings.warn(f"{found}. They are skipped.", stacklevel=2)
    file.seek(0)
    _write_header(file, len(kept), pixels)
    return kept


def _write_header(file: BinaryIO, rows: int, pixels: int) -> None:
    """A .npy header; numpy pads it, so that the final number of rows fits where the first was written."""
    shape = (rows, 3, pixels, pixels)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _disk_full(folder: Path, needed: int) -> DataError:
    free = shutil.disk_usage(folder.parent).free
    return DataError(
        f"{folder.parent}: no room for the decoded images: about {needed / 1e6:,.1f} MB are needed there and "
        f"{free / 1e6:,.1f} MB are free. Free some, or set CLIPMEM_RUNS to a folder on another disk."
    )
