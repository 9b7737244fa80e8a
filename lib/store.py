"""Finished runs on disk, found by content: atomic, locked, verified on load, listed and pruned.

A run is a folder `runs/<kind>/<key>/`. Files are written under another name and renamed; `DONE`, which lists every
file with its SHA-256, is written last. A folder without `DONE` is unfinished: the same command continues it.

    python -m lib.store list | verify | prune [--yes]
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.recipes import VERSION

PROJECT = Path(__file__).resolve().parent.parent
DONE = "DONE"


class StoreError(RuntimeError):
    """A run cannot be written or read; the message names the folder and what to do."""


def root() -> Path:
    """Where runs lie: the environment variable CLIPMEM_RUNS, else `runs/` of the project."""
    return Path(os.environ.get("CLIPMEM_RUNS") or PROJECT / "runs")


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that is renamed to it when the block ends well, and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own words
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        raise disk_full(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def disk_full(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path}: the disk is full ({error}). What was finished is kept. Free some space, or set CLIPMEM_RUNS to a "
        "folder on another disk, and give the same command again: it continues."
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader, or a full disk, never meets half of it."""
    with _atomic(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors atomically as safetensors."""
    with _atomic(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically as parquet."""
    with _atomic(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU."""
    return load_file(path)


def obtain(kind: str, key: str, about: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder of a finished entry; `build(folder)` makes it where it is missing, and may find its own checkpoints.

    One process builds at a time: others wait for the lock and then find the entry finished. A finished entry whose
    files no longer have their recorded hashes is put aside as `<key>.broken` and built again.

    Raises:
        StoreError: the disk is full.
    """
    folder = root() / kind / key
    if not _sound(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not _sound(folder):
                _put_aside_if_broken(folder)
                folder.mkdir(exist_ok=True)
                write_json(folder / "about.json", {"version": VERSION, **about})
                build(folder)
                _finish(folder)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(str(folder) + ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting: another process is at work on {folder}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def finished(kind: str, key: str) -> bool:
    """Whether the entry is complete; its files are not read."""
    return (root() / kind / key / DONE).is_file()


def _sound(folder: Path) -> bool:
    return (folder / DONE).is_file() and not problems(folder)


def _put_aside_if_broken(folder: Path) -> None:
    if not (folder / DONE).is_file():
        return
    aside = folder.with_name(folder.name + ".broken")
    warnings.warn(f"{folder}: {'; '.join(problems(folder))}. Put aside as {aside.name} and made again.", stacklevel=4)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _finish(folder: Path) -> None:
    files = {p.name: _sha256(p) for p in sorted(folder.iterdir()) if not p.name.startswith(".")}
    write_json(folder / DONE, files)


def problems(folder: Path) -> list[str]:
    """What is wrong with a finished entry: files that are missing or changed. Empty when it is sound."""
    done = folder / DONE
    return list(_problems(folder, done.stat().st_mtime_ns))


@cache
def _problems(folder: Path, stamp: int) -> tuple[str, ...]:
    try:
        recorded = json.loads((folder / DONE).read_text())
    except ValueError:
        return (f"{DONE} is not readable",)
    found = []
    for name, digest in recorded.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif _sha256(path) != digest:
            found.append(f"{name} has changed since it was written")
    return tuple(found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_use(experiment: str, notebook: str, keys: Sequence[str]) -> None:
    """Remember which runs a notebook uses at `experiment`, `<dataset>-<scale>`."""
    write_json(root() / "uses" / f"{experiment}.{notebook}.json", sorted(keys))


def uses() -> dict[str, str]:
    """The notebooks that use each run: key -> "01, 04"."""
    found: dict[str, set[str]] = {}
    for path in sorted(root().glob("uses/*.json")):
        for key in json.loads(path.read_text()):
            found.setdefault(key, set()).add(path.stem.split(".")[-1][:2])
    return {key: ", ".join(sorted(notebooks)) for key, notebooks in found.items()}


def entries() -> pd.DataFrame:
    """All entries: kind, key, state (`done`, `unfinished`, `old version`, `broken copy`), megabytes, notebooks, …"""
    rows, used = [], uses()
    for about_file in sorted(root().glob("*/*/about.json")):
        folder, about = about_file.parent, json.loads(about_file.read_text())
        state = "done" if (folder / DONE).is_file() else "unfinished"
        state = "old version" if about.get("version") != VERSION else state
        state = "broken copy" if folder.name.endswith(".broken") else state
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
        text = ", ".join(f"{k} {v}" for k, v in about.items() if k not in ("version", "fingerprint", "recipe"))
        by = used.get(folder.name.split("-")[0], "")
        rows.append((folder.parent.name, folder.name, state, round(size, 1), by, text))
    return pd.DataFrame(rows, columns=["kind", "key", "state", "megabytes", "notebooks", "about"])


def _list() -> int:
    table = entries()
    total = f"{len(table)} entries in {root()}, {table['megabytes'].sum():.0f} MB"
    print(f"{total}\n{table.to_string(index=False, max_colwidth=100)}" if len(table) else total)
    return 0


def _verify() -> int:
    table, bad = entries(), 0
    for kind, key in table.loc[table["state"] == "done", ["kind", "key"]].itertuples(index=False):
        for problem in problems(root() / kind / key):
            bad += 1
            print(f"[FAIL] {root() / kind / key}: {problem}; the next run makes it again")
    print(f"{len(table)} entries read, {bad} problems")
    return 1 if bad else 0


def _prune(yes: bool) -> int:
    table = entries()
    for row in table[table["state"] != "done"].itertuples():
        print(f"{'removed' if yes else 'would remove'} {row.kind}/{row.key}: {row.state}, {row.megabytes} MB")
        if yes:
            with _locked(root() / row.kind / row.key):
                shutil.rmtree(root() / row.kind / row.key)
    print("" if yes else "nothing was removed; add --yes to remove them")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line: list, verify, prune."""
    parser = argparse.ArgumentParser(prog="python -m lib.store", description="List, verify and prune trained runs.")
    parser.add_argument("command", choices=["list", "verify", "prune"])
    parser.add_argument("--yes", action="store_true", help="prune: really remove unfinished, old and broken entries")
    args = parser.parse_args(argv)
    return {"list": _list, "verify": _verify, "prune": lambda: _prune(args.yes)}[args.command]()


if __name__ == "__main__":
    sys.exit(main())
