"""One store for all that is made once and read often: decoded data, labelled sets, trained models, scores.

An entry is a folder `runs/<kind>/<key>/`, found by the content of what made it. It is built by one process at a time.
`DONE`, written last, lists every file with a digest of the entry's key and of what the file holds; an entry without it
is unfinished and continued, and one whose files no longer match is rebuilt. Every file is written under another name
and then renamed.

    python -m lib.store         list what is there; to free space, delete folders of runs/
"""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent  # of the project
DONE = "DONE"
TEMPORARY = ".writing-"  # how the names of unfinished files begin
_rebuild_before = 0.0  # runs and scores made before this time are made again, see `rebuild`


class StoreError(RuntimeError):
    """The store cannot be written; the message names the file and says what to do, and a notebook shows it alone."""

    def _render_traceback_(self) -> list[str]:
        return [f"StoreError: {self}"]


def shared() -> Path:
    """Return the store that is read: the environment variable CLIPMEM_RUNS, else `runs/` in the project; absolute."""
    return Path(os.path.expanduser(os.environ.get("CLIPMEM_RUNS") or ROOT / "runs")).absolute()


def root() -> Path:
    """Return where is written: `shared()`, or `runs/` in the project where that is a folder that may only be read."""
    return ROOT / "runs" if shared().is_dir() and not os.access(shared(), os.W_OK) else shared()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise StoreError for what the system says: no space left, quota exceeded, file too large, permission denied."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}. What was finished is kept. Make room, or set "
            f"CLIPMEM_RUNS to another folder, and give the same command again: it continues."
        ) from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block ends well, else remove it."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
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
    write_bytes(path, table.to_parquet(index=False))


def _packed(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors in one step, as safetensors."""
    write_bytes(path, _packed(tensors))


def write_checkpoint(path: Path, tensors: dict[str, Tensor], name: str) -> None:
    """Write the tensors of an unfinished entry behind a digest of their content and of the entry's `name`."""
    content = _packed(tensors)
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


def rebuild(before: float) -> None:
    """Treat runs, scores and embeddings made before this time (seconds since 1970) as absent; 0 treats none so."""
    global _rebuild_before
    _rebuild_before = before


def get_or_build(kind: str, key: str, build: Callable[[Path], None], about: dict[str, Any]) -> Path:
    """Return the folder of a finished entry; `build(folder)` makes it where it is missing, and may find its checkpoint.

    Other processes that want the same entry wait. `about` is kept as about.json, for people. Raise StoreError.
    """
    if not _flaw(shared() / kind / key):
        return shared() / kind / key
    folder = root() / kind / key
    if _flaw(folder):
        with _lock(folder):
            if flaw := _flaw(folder):
                _clear(folder, flaw)
                write_json(folder / "about.json", about)
                build(folder)
                files = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
                write_json(folder / DONE, {path.name: _digest(path) for path in files})
                now = max(time.time(), _rebuild_before)  # a clock that was set back makes nothing old
                os.utime(folder / DONE, (now, now))
    return folder


def finished(kind: str, key: str) -> bool:
    """Return whether the entry is complete; its files are not read."""
    return any(_current(place / kind / key / DONE) for place in (shared(), root()))


def _current(file: Path) -> bool:
    """Return whether a file of an entry is there, and not from before the time since which all is wanted anew."""
    anew = file.parent.parent.name in ("run", "score", "embedding")
    return file.is_file() and not (anew and file.stat().st_mtime < _rebuild_before)


def _flaw(folder: Path) -> str:
    """Return why an entry cannot be used, "" for a sound one."""
    if not _current(folder / DONE):
        return "unfinished"
    try:
        recorded = json.loads((folder / DONE).read_text())
        wrong = [name for name in recorded if _digest(folder / name) != recorded[name]]
    except (ValueError, TypeError, OSError):  # no JSON; no object; or another process is just rebuilding the entry
        recorded, wrong = {}, []
    return f"{', '.join(wrong or [DONE])} missing or changed" if wrong or not recorded else ""


def _clear(folder: Path, flaw: str) -> None:
    """Remove an entry that is damaged or wanted anew; of one to be continued only what is half written."""
    if flaw != "unfinished":
        warnings.warn(f"{folder}: {flaw}. It is made again.", stacklevel=3)
    with explained(folder):
        if folder.exists() and ((folder / DONE).is_file() or not _current(folder / "about.json")):
            shutil.rmtree(folder)
        for file in folder.glob(f"{TEMPORARY}*"):
            file.unlink()


def _lock(folder: Path) -> AbstractContextManager:
    """Return the lock of an entry, held until its `with` ends."""
    lock = FileLock(f"{folder}.lock")
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            return lock.acquire(timeout=0)
        print(f"waiting: another process is making {folder}", flush=True)
        return lock.acquire()


def _digest(path: Path) -> str:
    """Return the SHA-256 of an entry's key and of a file of it, so that no other entry's file fits; "" without one."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(path.parent.name.encode())).hexdigest()


def entries() -> pd.DataFrame:
    """Return all entries, one row each: kind, key, state (`done` or `unfinished`), megabytes, about."""
    rows = []
    for about in sorted(root().glob("*/*/about.json")):
        size = sum(file.stat().st_size for file in about.parent.iterdir() if file.is_file()) / 1e6
        state = "done" if (about.parent / DONE).is_file() else "unfinished"
        rows.append((*about.parts[-3:-1], state, round(size, 1), " ".join(about.read_text(errors="replace").split())))
    return pd.DataFrame(rows, columns=["kind", "key", "state", "megabytes", "about"])


if __name__ == "__main__":
    print(root(), entries().to_string(index=False, max_colwidth=100), sep="\n")
