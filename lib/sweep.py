"""Many runs, several side by side, each found in the store or trained; and the tables that they give together."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from open_clip.model import CLIP

from lib import memorization, models, store, train
from lib.data import Prepared
from lib.progress import report
from lib.recipes import Recipe, described, f_and_g, key


def null_recipe(base: Recipe, seeds: Sequence[int]) -> Recipe:
    """The model of the null: one f more, with a seed of its own. (Comparing the seeds with each other in a circle would
    cost nothing, and would give a mean of exactly 0 whatever happens.)"""
    return replace(base, seed=max(seeds) + 1)


def pair_study(base: Recipe, seeds: Sequence[int]) -> list[Recipe]:
    """Every model that CLIPMem and its null need: f and g of each seed, and one f more."""
    return [*(recipe for seed in seeds for recipe in f_and_g(base, seed)), null_recipe(base, seeds)]


def cached(recipes: Sequence[Recipe], prepared: Prepared) -> int:
    """How many of the recipes the store already holds."""
    return sum(store.finished("run", key(r, prepared.fingerprint)) for r in recipes)


def forget(recipes: Sequence[Recipe], prepared: Prepared) -> None:
    """Remove the runs of these recipes, finished or not, and their scores, so that they are made again."""
    for recipe in recipes:
        name = key(recipe, prepared.fingerprint)
        for folder in (store.root() / "run" / name, *store.root().glob(f"score/{name}-*[0-9]")):
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
        train.train(recipe, prepared, folder, note)
        store.write_json(folder / "timing.json", {"seconds": perf_counter() - start, "side_by_side": side_by_side()})

    about: dict[str, Any] = {
        "dataset": prepared.pairs.name,
        "trained_on": " + ".join(recipe.trained_on),
        "model": recipe.model,
    }
    about |= {"seed": recipe.seed, "fingerprint": prepared.fingerprint, "recipe": described(recipe)}
    return store.obtain("run", key(recipe, prepared.fingerprint), about, build)


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
    """Train what the store does not hold."""

    def work(recipe: Recipe, note: Callable[[float], None]) -> Path:
        return run(recipe, prepared, lambda done, total: note(done / total))

    missing = [r for r in recipes if not store.finished("run", key(r, prepared.fingerprint))]
    each(f"train {len(missing)} models", work, missing)
    return [run(recipe, prepared) for recipe in recipes]


def load(recipe: Recipe, prepared: Prepared) -> CLIP:
    """The trained model of a recipe, ready to score."""
    folder = run(recipe, prepared)
    model = models.build(
        recipe.model, recipe.data.pixels, len(prepared.token_ids), prepared.tokens.shape[2], recipe.seed
    )
    model.load_state_dict(store.read_tensors(folder / "weights.safetensors"))
    return model.to(models.device()).eval()


def alignment(recipe: Recipe, prepared: Prepared, augmentations: int) -> pd.DataFrame:
    """`memorization.alignment` of a recipe's model, kept in the store beside the run."""

    def build(folder: Path) -> None:
        table = memorization.alignment(load(recipe, prepared), prepared, augmentations)
        store.write_table(folder / "alignment.parquet", table)

    run_key = key(recipe, prepared.fingerprint)
    about = {"run": run_key, "augmentations": augmentations}
    folder = store.obtain("score", f"{run_key}-{augmentations}", about, build)
    return pd.read_parquet(folder / "alignment.parquet")


def scores(base: Recipe, seeds: Sequence[int], prepared: Prepared, augmentations: int) -> pd.DataFrame:
    """CLIPMem of every scored pair under every seed, with its null and the free baselines.

    Returns:
        One row a (seed, pair): pair_id, subset, kind, dose, vagueness, rarity (ground truth, NaN where unknown);
        clipmem (raw, contrast), clipmem_plain, clipmem_normalised; null (f against one more f, see `null_recipe`);
        similarity_f, similarity_g, loss_f.
    """
    recipes = pair_study(base, seeds)
    each(f"score {len(recipes)} models", lambda r, note: alignment(r, prepared, augmentations), recipes)
    parts = []
    for seed in seeds:
        f, g = f_and_g(base, seed)
        of_f, of_g, of_other = (alignment(r, prepared, augmentations) for r in (f, g, null_recipe(base, seeds)))
        raw = memorization.clipmem(of_f, of_g)
        part = of_f[["pair_id", "subset"]].assign(
            seed=seed,
            clipmem=raw,
            clipmem_plain=memorization.clipmem(of_f, of_g, "plain"),
            clipmem_normalised=memorization.range_normalised(raw, of_f["subset"] == "candidate"),
            null=memorization.clipmem(of_f, of_other),
            similarity_f=of_f["similarity"],
            similarity_g=of_g["similarity"],
            loss_f=of_f["loss"],
        )
        parts.append(part)
    truth = prepared.table[["pair_id", "kind", "dose", "vagueness", "rarity"]]
    return pd.concat(parts, ignore_index=True).merge(truth, on="pair_id", validate="many_to_one")


def along_training(base: Recipe, seeds: Sequence[int], prepared: Prepared) -> pd.DataFrame:
    """CLIPMem along training: one row a (seed, epoch, pair), pictures as they are.

    Returns:
        seed, epoch, pair_id, subset, kind, clipmem (raw, contrast).
    """
    parts = []
    for seed in seeds:
        f, g = (pd.read_parquet(run(r, prepared) / "looks.parquet") for r in f_and_g(base, seed))
        both = f.merge(g, on=["epoch", "pair_id", "subset"], suffixes=("_f", "_g"), validate="one_to_one")
        part = both[["epoch", "pair_id", "subset"]].assign(seed=seed)
        parts.append(part.assign(clipmem=both["contrast_f"] - both["contrast_g"]))
    truth = prepared.table[["pair_id", "kind"]]
    return pd.concat(parts, ignore_index=True).merge(truth, on="pair_id", validate="many_to_one")


def histories(base: Recipe, seeds: Sequence[int], prepared: Prepared) -> pd.DataFrame:
    """Loss, learning rate and retrieval by epoch of f and g of every seed (columns: seed, role, epoch, ...)."""
    parts = []
    for seed in seeds:
        for role, recipe in zip("fg", f_and_g(base, seed), strict=True):
            parts.append(pd.read_parquet(run(recipe, prepared) / "history.parquet").assign(seed=seed, role=role))
    return pd.concat(parts, ignore_index=True)
