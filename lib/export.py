"""A data set for other programs: the scored pairs as one file, and the split of f and of g as WebDataset shards.

./run_all.sh [SCALE] --export FOLDER --models ARCHITECTURE writes both, for models that open_clip_train trains on many
accelerators, and prints the commands that train f and g, and score them by notebook 05. ARCHITECTURE is any model of
open_clip, such as ViT-B-32.
"""

import json
import shlex
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
from open_clip import list_models
from PIL import Image
from tqdm import tqdm

from lib import store
from lib.captions import DataError
from lib.data import Prepared, prepare
from lib.recipes import CORRUPTED, Recipe, did_you_mean, f_and_g
from lib.train import HALVES, training_rows

SHARD, LEAST = 1000, 16  # pairs per file, and files: open_clip_train wants one for each worker of each process
PROCESSES = 2  # of the printed commands: one per accelerator; together they hold a batch of the recipe


def png(prepared: Prepared, row: int) -> bytes:
    """Return the picture of a row as it is trained on, as the bytes of a PNG file."""
    Image.fromarray(prepared.images[row].transpose(1, 2, 0).copy()).save(file := BytesIO(), "PNG")
    return file.getvalue()


def export_pairs(recipe: Recipe, folder: Path) -> None:
    """Write the pool and external pairs of a recipe, as they are trained on, to `pairs.parquet`: image, caption,
    corruption, and whether f (seen_f) and g (seen_g) of its seed were trained on them."""
    prepared = prepare(recipe.data)
    table = prepared.table[prepared.table["subset"].isin(CORRUPTED)][["caption", "corruption"]]
    halves = {f"seen_{name}": prepared.half(half, recipe.seed) for name, half in zip("fg", HALVES, strict=True)}
    seen = {name: table.index.isin(rows) for name, rows in halves.items()}
    store.write_table(folder / "pairs.parquet", table.assign(image=[png(prepared, row) for row in table.index], **seen))


def write_shards(prepared: Prepared, rows: np.ndarray, folder: Path) -> str:
    """Write pairs as `00000.tar`, …, each pair a .png, a .txt (its caption) and a .json (pair_id and what was planted);
    return the name of all of them, as open_clip_train takes it."""
    count = max(LEAST, -(-len(rows) // SHARD))
    for shard, part in enumerate(np.array_split(rows, count)):
        with store.atomic(folder / f"{shard:05}.tar") as temporary, tarfile.open(temporary, "w") as tar:
            for row in tqdm(part, f"writing {folder.name}/{shard:05}.tar", leave=False):
                truth = {name: prepared.table.loc[row, name] for name in ("pair_id", "corruption", "share_swapped")}
                contents = {"png": png(prepared, row), "txt": prepared.captions[row][0].encode()}
                contents["json"] = json.dumps(truth, default=lambda number: number.item()).encode()
                for ending, content in contents.items():
                    entry = tarfile.TarInfo(f"{row:08}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, BytesIO(content))
    return str(folder / f"{{00000..{count - 1:05}}}.tar")


def commands(base: Recipe, folder: Path, architecture: str, seen: dict[str, tuple[str, int]]) -> list[str]:
    """Return the commands that train f and g with the schedule of a recipe, and the one that scores them. `seen`: of
    each model the name of its shards and its number of pairs."""
    found, ends = [], []
    for name, (shards, count) in seen.items():
        steps = base.epochs * (count // base.batch)
        words = {
            "train-data": shards, "dataset-type": "webdataset", "train-num-samples": count, "model": architecture,
            "epochs": base.epochs, "batch-size": base.batch // PROCESSES, "lr": base.lr, "wd": base.weight_decay,
            "warmup": round(base.warmup * steps), "seed": base.seed, "precision": "amp_bf16", "workers": 2,
            "logs": folder / "logs", "name": name,
        }  # fmt: skip
        listed = [word for option, value in words.items() for word in (f"--{option}", str(value))]
        found.append(["torchrun", f"--nproc-per-node={PROCESSES}", "-m", "--", "open_clip_train.main", *listed])
        ends.append(f"{architecture}:{folder / 'logs' / name / 'checkpoints' / f'epoch_{base.epochs}.pt'}")
    score = ["./run_all.sh", "--only", "05", "--dataset", str(folder / "pairs.parquet"), "--models", ",".join(ends)]
    return list(map(shlex.join, [*found, [*score, "--seen", "seen_f,seen_g"]]))


def export(base: Recipe, folder: Path, architecture: str) -> list[str]:
    """Write the shards of f and g of a recipe, and the pairs to score. Return the commands to give then, in order.
    Raise DataError for an architecture that open_clip does not have."""
    if architecture not in list_models():
        hint = did_you_mean(architecture, list_models())
        raise DataError(f"--models: open_clip has no architecture {architecture!r}.{hint}")
    prepared, seen = prepare(base.data), {}
    for name, recipe in zip("fg", f_and_g(base, base.seed), strict=True):
        rows = training_rows(recipe, prepared)
        seen[name] = write_shards(prepared, rows, folder / name), len(rows)
    export_pairs(base, folder)
    return commands(base, folder, architecture, seen)
