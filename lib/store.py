"""Made once, read often: data, trained models, scores.

An entry is a folder `runs/<kind>/<key>/`, found by its content. One process builds it at a time. `DONE`, written last,
lists its files with their digests. They are compared once per process, when the entry is first used: a damaged entry is
named and made again, an unfinished one is continued."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent  # of the project
DONE = "DONE"
_sound: set[Path] = set()  # entries whose files were compared with their digests in this process


def root() -> Path:
    """Return the folder of the store: the environment variable CLIPMEM_RUNS, else `runs/` in the project."""
    return Path(os.environ.get("CLIPMEM_RUNS") or ROOT / "runs").expanduser().absolute()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader, or a full disk, never meets half of it."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table in one step, as parquet."""
    write_bytes(path, table.to_parquet(index=False))


def finished(kind: str, key: str) -> bool:
    """Return whether an entry is complete, and its files are as they were written."""
    folder = root() / kind / key
    if not (folder / DONE).is_file():
        _sound.discard(folder)
    elif folder not in _sound:
        try:
            recorded = json.loads((folder / DONE).read_text())
            wrong = [name for name, expected in recorded.items() if digest(folder / name) != expected]
        except (ValueError, AttributeError, OSError):  # no JSON, no object, a file that is gone
            wrong = [DONE]
        if wrong:
            warnings.warn(f"{folder}: {', '.join(wrong)} missing or changed. It is made again.", stacklevel=1)
        else:
            _sound.add(folder)
    return folder in _sound


def get_or_build(kind: str, key: str, build: Callable[[Path], None], about: dict[str, Any]) -> Path:
    """Return the folder of a complete entry; `build(folder)` makes it where it is missing, and may find its checkpoint.
    Other processes that want the same entry wait. `about` is kept as about.json, for people."""
    folder = root() / kind / key
    if finished(kind, key):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not finished(kind, key):
            for file in folder.glob("*" if (folder / DONE).exists() else ".writing-*"):  # damaged; half written
                file.unlink()
            write_json(folder / "about.json", about)
            build(folder)
            files = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
            write_json(folder / DONE, {path.name: digest(path) for path in files})
            _sound.add(folder)
    return folder


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(kind: str, key: str = "") -> None:
    """Delete an entry, or all entries of a kind, so that they are made again."""
    folder = root() / kind / key
    _sound.difference_update({entry for entry in _sound if entry == folder or folder in entry.parents})
    shutil.rmtree(folder, ignore_errors=True)
