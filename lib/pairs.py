"""Pairs, the one shape in which every data set arrives, and the folder that keeps them on disk.

A folder `pairs/<name>-<pixels>px-<key>` holds images.bin (uint8, one image after the other), table.parquet and
meta.json. It appears complete or not at all, written by one thread or process at a time, and is made again when its
source has changed, or when its content no longer has the fingerprint in meta.json.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from lib.progress import report
from lib.sources import DataError, Place, Row, Source

MAX_BROKEN = 0.01  # largest share of rows without a readable image or caption that is skipped
LARGE = 2**30  # bytes of images from which they stay on disk, memory-mapped
FORMAT = 3  # raised when decoding changes: older folders are then left alone
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # torch, of a map that it only reads
COLUMNS = {"pair_id": np.int64, "label": np.int64, "rarity": np.float32, "vagueness": np.float32}


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
    label_sets: list[list[int]] | None = None  # N lists of the ids of an image's categories, empty: none known


def folder_of(place: Place, columns: list[str], pixels: int | str) -> str:
    """The folder's name, below the cache; with "*" for `pixels`, a pattern for all sizes."""
    key = hashlib.sha256(json.dumps([FORMAT, place.target, columns]).encode()).hexdigest()[:16]
    return f"pairs/{place.name}-{pixels}px-{key}"


def load_kept(folder: Path, place: Place, pixels: int, open_it: Callable[[], Source]) -> Pairs:
    """The pairs in `folder`, filled from the source when it is absent, outdated or damaged. Raises DataError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        return _read_intact(folder, place, pixels) or _fill(folder, place, pixels, open_it())


def _read_intact(folder: Path, place: Place, pixels: int) -> Pairs | None:
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["identity"] != place.identity and not place.problem:
            return None
        pairs = _read(folder, place.name, pixels, tuple(meta["label_names"]))
        if pairs.fingerprint != meta["fingerprint"]:
            raise ValueError("its content has changed")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        warnings.warn(f"{folder} is damaged ({error}); reading the source again", stacklevel=4)
        return None
    if place.problem:
        warnings.warn(f"the hub cannot be reached ({place.problem}); using the copy in {folder}", stacklevel=4)
    return pairs


def _read(folder: Path, name: str, pixels: int, label_names: tuple[str, ...]) -> Pairs:
    table = pq.read_table(folder / "table.parquet")
    captions = table["captions"].to_pylist()
    known = {column: np.array(table[column].to_pylist(), COLUMNS[column])
             for column in COLUMNS if not table[column].null_count}  # fmt: skip
    ids, labels, rarity, vagueness = map(known.get, COLUMNS)
    file, shape = folder / "images.bin", (len(table), 3, pixels, pixels)
    if file.stat().st_size < LARGE:
        images = np.fromfile(file, np.uint8).reshape(shape)
    else:
        images = np.memmap(file, np.uint8, "r", shape=shape)  # "c" is refused for more than the memory
    sets = None if table["label_set"].null_count else table["label_set"].to_pylist()
    columns = [ids, labels] if rarity is None else [labels, rarity, vagueness]
    content = _fingerprint(images, captions, columns, sets)
    return Pairs(name, images, captions, known["pair_id"], labels, label_names, rarity, vagueness, content, sets)


def _fingerprint(
    images: np.ndarray, captions: list[list[str]], columns: list[np.ndarray | None], label_sets: list[list[int]] | None
) -> str:
    digest = hashlib.sha256(json.dumps([images.shape, captions]).encode())
    for start in range(0, len(images), 1024):
        digest.update(images[start : start + 1024].tobytes())
    for column in columns:
        digest.update(b"none" if column is None else f"{column.dtype}{column.shape}".encode() + column.tobytes())
    if label_sets is not None:  # sets without keep the fingerprint that they had before there were any
        digest.update(json.dumps(label_sets).encode())
    return digest.hexdigest()


def _fill(folder: Path, place: Place, pixels: int, source: Source) -> Pairs:
    needed = (source.size or 0) * (3 * pixels**2 + 500)  # captions take a few hundred bytes a row
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        if shutil.disk_usage(folder.parent).free < needed:
            raise OSError(errno.ENOSPC, "too little space")
        part.mkdir()
        pq.write_table(_write_images(part / "images.bin", place, source), part / "table.parquet")
        pairs = _read(part, place.name, pixels, source.label_names)
        meta = {"identity": place.identity, "label_names": pairs.label_names, "fingerprint": pairs.fingerprint}
        (part / "meta.json").write_text(json.dumps(meta, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
        return pairs
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        free = shutil.disk_usage(folder.parent).free
        raise DataError(
            f"{folder.parent}: no room for the decoded images: about {needed / 1e6:,.1f} MB are needed there and "
            f"{free / 1e6:,.1f} MB are free. Free some, or set CLIPMEM_RUNS to a folder on another disk."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_images(file: Path, place: Place, source: Source) -> pa.Table:
    """Write the images of all usable rows; return what else is known of them. Raises DataError for too many broken."""
    kept: list[Row] = []
    problems: list[str] = []
    with open(file, "wb") as images:
        for done, row in enumerate(source.rows, start=1):
            if row.image is None:
                problems.append(row.problem)
            else:
                images.write(row.image.tobytes())
                kept.append(row._replace(image=None))
            report("reading images", done, source.size or done)
    total = len(kept) + len(problems)
    found = f"{place.target}: {len(problems)} of {total} rows cannot be used: {'; '.join(problems[:5])}"
    if not kept or len(problems) > MAX_BROKEN * total:
        raise DataError(f"{found}. At most {MAX_BROKEN:.0%} are skipped: repair or remove these rows.")
    if problems:
        warnings.warn(f"{found}. They are skipped.", stacklevel=5)
    return pa.table({name: [getattr(row, name) for row in kept] for name in ("captions", "label_set", *COLUMNS)})
