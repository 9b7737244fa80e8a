"""One store for all that is made once and read often: decoded data, labelled sets, trained models, scores.

An entry is a folder `runs/<kind>/<key>/`, found by the content of what made it. It is built by one process at a time.
`DONE`, written last, lists every file with its SHA-256; an entry without it is unfinished and continued, and an entry
whose files no longer match is rebuilt. Every file is written under another name and then renamed.

    python -m lib.store         list what is there; to free space, delete folders of runs/
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent  # of the project
DONE = "DONE"
TEMPORARY = ".writing-"  # how the names of unfinished files begin
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_rebuild_before = 0.0  # runs and scores finished before this time are made again, see `rebuild`


class StoreError(RuntimeError):
    """The store cannot be written; the message names the file and says what to do."""


def root() -> Path:
    """Return where the store lies: the environment variable CLIPMEM_RUNS, else `runs/` in the project; absolute."""
    return Path(os.environ.get("CLIPMEM_RUNS") or ROOT / "runs").expanduser().absolute()


# --- files ---


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block ends well, else remove it.

    Raises:
        StoreError: the disk is full, or the folder is not writable.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own words
        number = getattr(error, "errno", None)
        if number in FULL or "No space left" in str(error):
            reason = "the disk, or your quota on it, is full"
        elif number in (errno.EACCES, errno.EROFS, errno.EPERM):
            reason = "the folder is not writable"
        else:
            raise
        raise StoreError(
            f"{path}: {reason} ({error}). What was finished is kept. Make room, or set CLIPMEM_RUNS to another folder, "
            "and give the same command again: it continues."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader, or a full disk, never meets half of it. Raise StoreError, as all writers."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table in one step, as parquet."""
    with atomic(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors in one step, as safetensors."""
    with atomic(path) as temporary:
        safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU."""
    return safetensors.torch.load_file(path)


def write_checkpoint(path: Path, tensors: dict[str, Tensor], name: str) -> None:
    """Write the tensors of an unfinished entry behind a digest of their content and of the entry's `name`."""
    content = safetensors.torch.save({key: t.detach().cpu().contiguous() for key, t in tensors.items()})
    write_bytes(path, hashlib.sha256(name.encode() + content).digest() + content)


def read_checkpoint(path: Path, name: str) -> dict[str, Tensor] | None:
    """Return the tensors of a checkpoint, or None where there is none, or a damaged one, or another entry's."""
    if not path.is_file():
        return None
    whole = path.read_bytes()
    if whole[:32] != hashlib.sha256(name.encode() + whole[32:]).digest():
        warnings.warn(f"{path} is damaged, or belongs to another run; training starts from the beginning", stacklevel=2)
        return None
    return safetensors.torch.load(whole[32:])


# --- entries ---


def rebuild(before: float) -> None:
    """Treat runs and scores finished before this time (seconds since 1970) as absent; 0 treats none so."""
    global _rebuild_before
    _rebuild_before = before


def get_or_build(kind: str, key: str, build: Callable[[Path], None], about: dict[str, Any]) -> Path:
    """Return the folder of a finished entry; `build(folder)` makes it where it is missing, and may find its checkpoint.

    Other processes that want the same entry wait. `about` is kept as about.json, for people. Raise StoreError when the
    disk is full.
    """
    folder = root() / kind / key
    if not _sound(folder):
        with _locked(folder):
            if not _sound(folder):
                _clear(folder)
                write_json(folder / "about.json", about)
                build(folder)
                files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(TEMPORARY)]
                write_json(folder / DONE, {path.name: _sha256(path) for path in sorted(files)})
    return folder


def finished(kind: str, key: str) -> bool:
    """Return whether the entry is complete; its files are not read."""
    done = root() / kind / key / DONE
    return done.is_file() and (kind not in ("run", "score") or done.stat().st_mtime >= _rebuild_before)


def _sound(folder: Path) -> bool:
    done = folder / DONE
    return finished(folder.parent.name, folder.name) and not problems(folder, done.stat().st_mtime_ns)


@cache
def problems(folder: Path, stamp: int) -> tuple[str, ...]:
    """Return what is wrong with a finished entry: files that are missing or changed. `stamp`: when DONE was written."""
    try:
        recorded = json.loads((folder / DONE).read_text())
        if not isinstance(recorded, dict) or not recorded:
            raise ValueError
    except ValueError:
        return (f"{DONE} is not readable",)
    lost = [name for name in recorded if not (folder / name).is_file()]
    changed = [name for name in recorded if name not in lost and _sha256(folder / name) != recorded[name]]
    return (*(f"{name} is missing" for name in lost), *(f"{name} has changed" for name in changed))


def _clear(folder: Path) -> None:
    """Remove an entry that was finished, because it is damaged or wanted anew; leave an unfinished one to continue."""
    if (folder / DONE).is_file():
        if finished(folder.parent.name, folder.name):
            found = "; ".join(problems(folder, (folder / DONE).stat().st_mtime_ns))
            warnings.warn(f"{folder}: {found}. It is made again.", stacklevel=4)
        shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting: another process is making {folder}", flush=True)
            lock.acquire()
    except PermissionError as error:
        raise StoreError(
            f"{folder} is missing, and {root()} is not writable. Set CLIPMEM_RUNS to a folder of your own."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries() -> pd.DataFrame:
    """Return all entries, one row each: kind, key, state (`done` or `unfinished`), megabytes, about."""
    rows = []
    for about_file in sorted(root().glob("*/*/about.json")):
        folder = about_file.parent
        try:
            about = json.loads(about_file.read_text())
        except ValueError:
            about = {"about.json": "not readable"}
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        text = ", ".join(f"{name} {value}" for name, value in about.items() if not isinstance(value, dict))
        state = "done" if (folder / DONE).is_file() else "unfinished"
        rows.append((folder.parent.name, folder.name, state, round(size, 1), text))
    return pd.DataFrame(rows, columns=["kind", "key", "state", "megabytes", "about"])


if __name__ == "__main__":
    table = entries()
    print(f"{len(table)} entries in {root()}, {table['megabytes'].sum():.0f} MB")
    if len(table):
        print(table.to_string(index=False, max_colwidth=100))
