"""Many runs, several side by side, each found in the store or trained."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from open_clip.model import CLIP
from torch import Tensor

from lib import models, store, train
from lib.data import Prepared
from lib.progress import report
from lib.recipes import Recipe, described, key, needed_before


def cached(recipes: Sequence[Recipe], prepared: Prepared) -> int:
    """How many of the recipes the store already holds."""
    return sum(store.finished("run", key(r, prepared.fingerprint)) for r in recipes)


def forget(recipes: Sequence[Recipe], prepared: Prepared) -> None:
    """Remove the runs of these recipes, finished or not, and their scores, so that they are made again.

    What was finished after the time in the environment variable CLIPMEM_BEGUN stays: run_all.sh sets it, so that
    `--force` trains once what several notebooks share.
    """
    begun = float(os.environ.get("CLIPMEM_BEGUN", "inf"))
    for recipe in recipes:
        name = key(recipe, prepared.fingerprint)
        run_folder = store.root() / "run" / name
        done = run_folder / store.DONE
        if not (done.is_file() and done.stat().st_mtime > begun):
            for folder in (run_folder, *store.root().glob(f"score/{name}-*")):
                shutil.rmtree(folder, ignore_errors=True)


def estimate_minutes(recipes: Sequence[Recipe], prepared: Prepared) -> float:
    """Minutes that the runs still missing will take on this machine, from a few timed steps of the first of them."""
    missing = [r for r in recipes if not store.finished("run", key(r, prepared.fingerprint))]
    timed = each("estimate", lambda recipe, note: train.estimate_seconds(recipe, prepared), missing[: side_by_side()])
    return sum(timed) / len(timed) * math.ceil(len(missing) / side_by_side()) / 60 if missing else 0.0


def run(recipe: Recipe, prepared: Prepared, note: Callable[[float, float], None] = lambda done, total: None) -> Path:
    """The folder of one finished run: from the store, or trained now. `note(epochs done, epochs)` follows it."""

    def build(folder: Path) -> None:
        start = perf_counter()
        train.train(recipe, prepared, folder, note, _donor(recipe, prepared), left_out(recipe, prepared))
        store.write_json(folder / "timing.json", {"seconds": perf_counter() - start, "side_by_side": side_by_side()})

    about: dict[str, Any] = {
        "dataset": prepared.pairs.name,
        "trained_on": " + ".join(recipe.trained_on),
        "model": recipe.model,
    }
    about |= {"seed": recipe.seed, "fingerprint": prepared.fingerprint, "recipe": described(recipe)}
    return store.obtain("run", key(recipe, prepared.fingerprint), about, build)


def _donor(recipe: Recipe, prepared: Prepared) -> dict[str, Tensor] | None:
    """The weights of which a recipe's frozen tower is taken."""
    if not recipe.frozen:
        return None
    return store.read_tensors(run(needed_before(recipe)[0], prepared) / "weights.safetensors")


def left_out(recipe: Recipe, prepared: Prepared) -> np.ndarray | None:
    """The rows of the candidates that a recipe removes, by the scores of f and g at the end of their training."""
    if not recipe.remove:
        return None
    rows = prepared.subsets["candidate"]
    if recipe.remove_by == "random":
        return np.random.default_rng([recipe.seed, 3]).permutation(rows)[: recipe.remove]
    f, g = (final_look(r, prepared).set_index("pair_id") for r in needed_before(recipe))
    suspicious = {"clipmem": f["contrast"] - g["contrast"], "similarity": -f["similarity"], "loss": f["loss"]}
    worst = suspicious[recipe.remove_by][prepared.pairs.pair_ids[rows]].to_numpy()
    return rows[np.argsort(-worst, kind="stable")[: recipe.remove]]


def final_look(recipe: Recipe, prepared: Prepared) -> pd.DataFrame:
    """`looks.parquet` of a run, its last epoch only."""
    looks = pd.read_parquet(run(recipe, prepared) / "looks.parquet")
    return looks[looks["epoch"] == looks["epoch"].max()]


def side_by_side() -> int:
    """How many models are worked on at once: the environment variable CLIPMEM_JOBS (`./run_all.sh --jobs N`), else one
    a core on the CPU, where one thread each is faster than all cores on one small model (`python -m lib.benchmark`),
    and where the bits of a run then do not depend on how many cores there are; one on an accelerator."""
    cores = os.cpu_count() or 1
    return int(os.environ.get("CLIPMEM_JOBS") or (cores if models.device().type == "cpu" else 1))


def each(name: str, work: Callable[[Recipe, Callable[[float], None]], Any], recipes: Sequence[Recipe]) -> list[Any]:
    """`work(recipe, note)` for every recipe, several at once in threads of one process; the results in order.

    `note(share done)` reports progress as phase `name`, and ends the work where another one failed or Ctrl-C was given.
    """
    shares, stop, threads = dict.fromkeys(recipes, 0.0), Event(), torch.get_num_threads()

    def one(recipe: Recipe) -> Any:
        def note(share: float) -> None:
            if stop.is_set():
                raise InterruptedError("stopped because another run failed or was interrupted")
            shares[recipe] = share
            report(name, sum(shares.values()), len(recipes))

        if jobs > 1:
            torch.set_num_threads(max(1, threads // jobs))
        note(0)
        result = work(recipe, note)
        note(1)
        return result

    jobs = side_by_side()
    try:
        with ThreadPoolExecutor(jobs) as pool:
            try:
                return list(pool.map(one, recipes))
            except BaseException:
                stop.set()
                raise
    finally:
        torch.set_num_threads(threads)


def train_all(recipes: Sequence[Recipe], prepared: Prepared) -> list[Path]:
    """Train what the store does not hold, first what others start from."""

    def work(recipe: Recipe, note: Callable[[float], None]) -> Path:
        return run(recipe, prepared, lambda done, total: note(done / total))

    missing = [r for r in recipes if not store.finished("run", key(r, prepared.fingerprint))]
    for wave in ([r for r in missing if not needed_before(r)], [r for r in missing if needed_before(r)]):
        each(f"train {len(wave)} models", work, wave)
    return [run(recipe, prepared) for recipe in recipes]


def load(recipe: Recipe, prepared: Prepared) -> CLIP:
    """The trained model of a recipe, ready to score."""
    folder = run(recipe, prepared)
    model = train.fresh(recipe, prepared)
    model.load_state_dict(store.read_tensors(folder / "weights.safetensors"))
    return model.eval()
