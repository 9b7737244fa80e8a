"""Made once, read often: data, trained models, scores.

An entry is a folder `runs/<kind>/<key>/`, found by its content. One process builds it at a time. `DONE`, written last,
lists its files with their digests. They are compared once per process, when the entry is first used: a damaged entry is
named and made again, an unfinished one is continued."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent  # of the project
DONE = "DONE"
PACKED = {"float16": "BYTE_STREAM_SPLIT", "int64": "DELTA_BINARY_PACKED"}  # of published tables: half as large so
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


def publish(folder: Path, models: Sequence[dict], unread: Mapping[str, Sequence[str]]) -> None:
    """Merge the scores of models, dicts with a `notebook` and the `key` of the run, into a folder of scores. What this
    holds of other notebooks stays. Scores become float16; columns that are `unread`, by table, are left out. A file
    holds one table of the models that a notebook added, told apart by a column `key`. index.json lists all."""
    path, notebooks = folder / "index.json", {model["notebook"] for model in models}
    old = json.loads(path.read_text()) if path.is_file() else {"models": [], "files": {}}
    models = [*(model for model in old["models"] if model["notebook"] not in notebooks), *models]
    keys = {model["key"]: model["notebook"][:2] for model in reversed(models)}  # of the first notebook that has it
    tables, files = dict[tuple[str, str], pd.DataFrame](), dict[str, str]()
    for file, name in old["files"].items():
        tables |= {(name, key): rows for key, rows in pd.read_parquet(folder / file).groupby("key")}
    for entry in (root() / "score").glob(f"*/{DONE}"):
        key, _, name = entry.parent.name.partition("-")
        if key in keys:
            table = pd.read_parquet(entry.with_name("table.parquet")).assign(key=key)
            table = table.drop(columns=unread.get(re.sub(r"-\d+", "", name), ()), errors="ignore")
            kind = "float32" if name == "history" else "float16"
            tables[name, key] = table.astype(dict.fromkeys(table.select_dtypes("float"), kind))
    stacked: dict[tuple, list[pd.DataFrame]] = {}
    for name, key in sorted(name_and_key for name_and_key in tables if name_and_key[1] in keys):
        stacked.setdefault((keys[key], name, *tables[name, key]), []).append(tables[name, key])  # with equal columns
    for (notebook, name, *_), parts in stacked.items():
        same = sum(file.startswith(f"{notebook}-{name}.") for file in files)
        table, file = pd.concat(parts), f"{notebook}-{name}.{same}.parquet"
        packed = {column: PACKED[str(kind)] for column, kind in table.dtypes.items() if str(kind) in PACKED}
        how = {"use_dictionary": [*table.columns.difference(packed)], "row_group_size": 20_000, "compression_level": 19}
        write_bytes(folder / file, table.to_parquet(index=False, compression="zstd", column_encoding=packed, **how))
        files[file] = name
    for file in old["files"].keys() - files.keys():
        (folder / file).unlink()
    there = {key for _, key in tables}
    write_json(path, {"models": [model for model in models if model["key"] in there], "files": files})


def published(folder: Path, key: str, name: str) -> pd.DataFrame:
    """Return the table `name` of the model whose run had this key, from a folder of `publish`. Which key that was is in
    index.json. Half precision becomes double. Raise ValueError where it was not published."""
    for file in folder.glob(f"??-{name}[.-]*.parquet"):  # a name may go on: with the labelled sets of utility
        if len(found := pd.read_parquet(file, filters=[("key", "==", key)]).drop(columns="key")):
            return found.astype(dict.fromkeys(found.select_dtypes("float16"), "float64"))
    raise ValueError(f"{folder} has no table {name!r} of model {key}: use scores = 'own', which trains and measures.")
