"""Two small labelled sets of photographs, to probe frozen models with: Imagenette and CIFAR-10, decoded once.

Captioned photographs come without labels that all their sets share, so models are asked about these beside them.
"""

import hashlib
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from safetensors import SafetensorError

from lib import store
from lib.decode import decode_image
from lib.sources import DataError, locate

SETS = {  # name -> name on the hub, and where its training and test part lie among the parquet files that the hub makes
    "imagenette": ("frgfm/imagenette", "160px/train", "160px/validation"),
    "cifar10": ("uoft-cs/cifar10", "plain_text/train", "plain_text/test"),
}
LIMITS = {"train": 5000, "test": 2000}  # images taken of a part, evenly spaced
FORMAT = 1  # raised when decoding changes


@dataclass(frozen=True)
class Labelled:
    """Images with one class each, to train a probe on and to test it."""

    name: str
    train_images: np.ndarray  # uint8 [N, 3, pixels, pixels]
    train_targets: np.ndarray  # int64 [N], index into class_names
    test_images: np.ndarray  # uint8 [M, 3, pixels, pixels]
    test_targets: np.ndarray  # int64 [M]
    class_names: tuple[str, ...]  # () where the file tells none


def find(dataset: str, pixels: int, cache: Path) -> list[Labelled]:
    """The labelled sets for a data set of photographs; none for scenes, which have labels of their own.

    Read from <name>_train.parquet and <name>_test.parquet (columns image, label) beside the data set, else from the
    hub, and kept decoded under `cache`. A set that is in neither place is left out with a warning.

    Raises:
        DataError: the data set is nowhere, or a file beside it cannot be used.
    """
    if dataset == "scenes":
        return []
    place = locate(dataset)
    beside = None if place.kind == "hub" else Path(place.target).parent
    found = (_find_one(name, beside, pixels, cache) for name in SETS)
    return [one for one in found if one is not None]


def _find_one(name: str, beside: Path | None, pixels: int, cache: Path) -> Labelled | None:
    files = [beside / f"{name}_{part}.parquet" for part in LIMITS] if beside else []
    if files and all(file.is_file() for file in files):
        identity = "|".join(locate(str(file)).identity for file in files)
        return _kept(name, [str(file) for file in files], identity, pixels, cache)
    hub, *parts = SETS[name]
    try:
        place = locate(hub)
        sources = [f"hf://datasets/{hub}@refs/convert/parquet/{part}/*.parquet" for part in parts]
        return _kept(name, sources, place.identity, pixels, cache, place.problem)
    except Exception as error:  # the hub's client raises what its HTTP library of the day raises
        warnings.warn(
            f"no labelled images '{name}', so nothing is probed on them: put {name}_train.parquet and "
            f"{name}_test.parquet (columns image, label) into the folder {beside or 'of a data set that is a file'}, "
            f"or connect to the Hugging Face hub ({type(error).__name__}: {error})",
            stacklevel=4,
        )
        return None


def _kept(name: str, sources: list[str], identity: str, pixels: int, cache: Path, problem: str = "") -> Labelled:
    """The set as kept under `cache`, read from its sources when it is absent, outdated or damaged."""
    key = hashlib.sha256(json.dumps([FORMAT, sources]).encode()).hexdigest()[:16]
    file = cache / "labelled" / f"{name}-{pixels}px-{key}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        try:
            tensors = {part: tensor.numpy() for part, tensor in store.read_tensors(file).items()}
            about = json.loads(tensors.pop("about").tobytes())
            if about["identity"] == identity or problem:
                return Labelled(name, class_names=tuple(about["class_names"]), **tensors)
        except (OSError, SafetensorError, ValueError, KeyError):  # absent or damaged
            pass
        if problem:
            raise ConnectionError(problem)
        return _read(name, sources, identity, pixels, file)


def _read(name: str, sources: list[str], identity: str, pixels: int, file: Path) -> Labelled:
    parts: dict[str, np.ndarray] = {}
    for (part, limit), source in zip(LIMITS.items(), sources, strict=True):
        parts[f"{part}_images"], parts[f"{part}_targets"], names = _decoded(source, limit, pixels)
    about = json.dumps({"identity": identity, "class_names": names}).encode()
    tensors = {part: torch.from_numpy(array) for part, array in parts.items()}
    store.write_tensors(file, tensors | {"about": torch.frombuffer(bytearray(about), dtype=torch.uint8)})
    return Labelled(name, class_names=names, **parts)


def _decoded(source: str, limit: int, pixels: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images uint8 [N, 3, pixels, pixels], classes int64 [N] and class names of a file, or of a pattern on the hub."""
    from datasets import Features

    table = _table(source)
    image = next((name for name in ("image", "img") if name in table.column_names), "")
    if not image or "label" not in table.column_names or table["label"].null_count or not len(table):
        raise DataError(f"{source}: expected columns 'image' and 'label', one int a row; it has {table.column_names}.")
    rows = np.unique(np.linspace(0, len(table) - 1, min(limit, len(table))).round().astype(int))  # some lie by class
    taken = table.take(rows)

    def decode(row: int, cell: Any) -> np.ndarray:
        try:
            return decode_image(cell, pixels)
        except Exception as error:  # Pillow raises errors of many kinds
            raise DataError(f"{source}: row {row} holds no readable image ({error}). Copy the file again.") from error

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(decode, rows, taken[image].to_pylist())))
    kind = Features.from_arrow_schema(table.schema)["label"]
    return images, taken["label"].to_numpy().astype(np.int64), tuple(getattr(kind, "names", None) or ())


def _table(source: str) -> pa.Table:
    from huggingface_hub import HfFileSystem

    if source.startswith("hf://"):
        hub = HfFileSystem()
        return pq.read_table(hub.glob(source.removeprefix("hf://")), filesystem=hub)
    try:
        return pq.read_table(source)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{source}: no readable parquet file ({error}). Copy it again, or take it away.") from error
