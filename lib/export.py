"""The split of f and of g as WebDataset shards, for models that open_clip_train trains on many accelerators.

python -m lib.export FOLDER ARCHITECTURE [SCALE] [--dataset …]    write the shards; print what trains and scores f and g

ARCHITECTURE is any model of open_clip, such as ViT-B-32. Beside the shards lies `pairs.parquet` with every scored pair,
what was planted in it, and which of the two models saw it: notebook 05 scores the trained checkpoints on it.
"""

import io
import json
import shlex
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
from PIL import Image
from tqdm import tqdm

from lib import checkpoints, store, train
from lib.captions import DataError
from lib.data import Prepared, prepare
from lib.recipes import Recipe, f_and_g
from lib.run import parse
from lib.study import plan

SHARD = 5000  # pairs per file: a few hundred megabytes at 224 pixels
PROCESSES = 2  # of the printed commands: one per accelerator; together they hold a batch of the recipe


def write_shards(prepared: Prepared, rows: np.ndarray, folder: Path) -> str:
    """Write pairs as `00000.tar`, …, each pair a .png, a .txt (its caption) and a .json (pair_id and what was planted);
    return the name of all of them, as open_clip_train takes it."""
    count = -(-len(rows) // SHARD)
    for shard, part in enumerate(np.array_split(rows, count)):
        with store.atomic(folder / f"{shard:05}.tar") as temporary, tarfile.open(temporary, "w") as tar:
            for row in tqdm(part, f"writing {folder.name}/{shard:05}.tar", leave=False):
                truth = {name: prepared.table.loc[row, name] for name in ("pair_id", "corruption", "share_swapped")}
                picture = io.BytesIO()
                Image.fromarray(prepared.images[row].transpose(1, 2, 0).copy()).save(picture, "PNG")
                contents = {"png": picture.getvalue(), "txt": prepared.captions[row][0].encode()}
                contents["json"] = json.dumps(truth, default=lambda number: number.item()).encode()
                for ending, content in contents.items():
                    entry = tarfile.TarInfo(f"{row:08}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return str(folder / ("00000.tar" if count == 1 else f"{{00000..{count - 1:05}}}.tar"))


def commands(base: Recipe, folder: Path, architecture: str, seen: dict[str, tuple[str, int]]) -> list[str]:
    """Return the commands that train f and g with the schedule of a recipe, and the one that scores them. `seen`: of
    each model the name of its shards and its number of pairs."""
    found, ends = [], []
    for name, (shards, count) in seen.items():
        steps = base.epochs * (count // base.batch)
        words = {
            "train-data": shards, "dataset-type": "webdataset", "train-num-samples": count, "model": architecture,
            "epochs": base.epochs, "batch-size": base.batch // PROCESSES, "lr": base.lr, "wd": base.weight_decay,
            "warmup": round(base.warmup * steps), "seed": base.seed, "precision": "amp_bf16", "logs": folder / "logs",
            "name": name,
        }  # fmt: skip
        listed = [word for option, value in words.items() for word in (f"--{option}", str(value))]
        found.append(["torchrun", f"--nproc-per-node={PROCESSES}", "-m", "open_clip_train.main", *listed])
        ends.append(f"{architecture}:{folder / 'logs' / name / 'checkpoints' / f'epoch_{base.epochs}.pt'}")
    score = ["./run_all.sh", "--only", "05", "--dataset", str(folder / "pairs.parquet"), "--models", ",".join(ends)]
    return list(map(shlex.join, [*found, [*score, "--seen", "seen_f,seen_g"]]))


def export(base: Recipe, folder: Path, architecture: str) -> list[str]:
    """Write the shards of f and g of a recipe, and the pairs to score. Return the commands to give then, in order."""
    prepared, seen = prepare(base.data), {}
    for name, recipe in zip("fg", f_and_g(base, base.seed), strict=True):
        rows = train.training_rows(recipe, prepared)
        seen[name] = write_shards(prepared, rows, folder / name), len(rows)
    checkpoints.export_pairs(base, folder)
    return commands(base, folder, architecture, seen)


def main(words: Sequence[str]) -> int:
    """Do what the module's head says; return the exit status."""
    if len(words) < 2 or words[0].startswith("-") or words[1] not in open_clip.list_models():
        print("[FAIL] python -m lib.export FOLDER ARCHITECTURE [SCALE] [options]; open_clip.list_models() lists the "
              "architectures", file=sys.stderr)  # fmt: skip
        return 2
    options, folder = parse(list(words[2:])), Path(words[0]).expanduser().absolute()
    try:
        where = (options.scale, options.dataset, options.captions, options.image)
        print(*export(plan("02_miscaptioned_memorization", *where)[1]["CLIP"], folder, words[1]), sep="\n\n")
    except (DataError, store.StoreError) as error:
        print(f"[FAIL] {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
