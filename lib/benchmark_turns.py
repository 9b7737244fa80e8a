"""Who is timed by lib.benchmark and how: our loop and our scoring as notebooks run them, and everybody in turns."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from lib import memorization, models, store, sweep, train
from lib.benchmark_work import synthetic
from lib.data import Prepared, prepare
from lib.recipes import SCALES, Recipe

ROUNDS = 3  # how often every contestant has its turn
EPOCHS = 3  # of our loop in a turn; the first is not timed


class _Enough(Exception):
    """Ends a training that was only timed."""


def workload(dataset: str | None, steps: int) -> tuple[Recipe, Prepared]:
    """The laptop recipe for photographs with an epoch of `steps` batches, and 100 pairs in every other subset."""
    recipe = SCALES["laptop"].photos
    data = replace(recipe.data, dataset=dataset or "synthetic", shared=steps * recipe.batch - 100)
    data = replace(data, candidate=100, independent=100, external=100, disjoint=100)
    prepared = prepare(data, store.root() / "cache") if dataset else synthetic(data)
    return replace(recipe, data=prepared.data), prepared


def timed_training(recipe: Recipe, prepared: Prepared) -> float:
    """Pairs a second of `train.train` on the threads that the caller has, the first epoch not counted."""
    ends: list[float] = []

    def note(done: float, total: float) -> None:
        ends.append(perf_counter())
        if len(ends) == EPOCHS:
            raise _Enough

    with TemporaryDirectory() as folder, suppress(_Enough):
        train.train(recipe, prepared, Path(folder), note)
    pairs = sum(len(prepared.subsets[name]) for name in recipe.trained_on) // recipe.batch * recipe.batch
    return pairs * (len(ends) - 1) / (ends[-1] - ends[0])


def side_by_side(recipe: Recipe, prepared: Prepared, at_once: int) -> float:
    """Pairs a second of several models together, run as notebooks run them."""
    recipes = [replace(recipe, seed=seed) for seed in range(at_once)]
    return sum(sweep.each("benchmark", lambda r, note: timed_training(r, prepared), recipes))


def timed_scoring(recipe: Recipe, prepared: Prepared, augmentations: int) -> float:
    """Scored pairs a second of `memorization.alignment`, run as notebooks run it."""
    built = (recipe.model, recipe.data.pixels, len(prepared.token_ids), prepared.tokens.shape[2])
    recipes = [replace(recipe, seed=seed) for seed in range(sweep.side_by_side())]
    scored = sum(len(rows) for rows in memorization.scored_rows(prepared).values())

    def work(r: Recipe, note: Any) -> None:
        memorization.alignment(models.build(*built, r.seed).to(models.device()).eval(), prepared, augmentations)

    start = perf_counter()
    sweep.each("benchmark", work, recipes)
    return scored * len(recipes) / (perf_counter() - start)


def in_turns(contestants: dict[str, Callable[[], float]]) -> dict[str, tuple[float, ...]]:
    """Every contestant's measurements, taken A B C A B C ..."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(ROUNDS):
        for name, measure in contestants.items():
            print(f"turn {turn + 1} of {ROUNDS}: {name} ...", file=sys.stderr, flush=True)
            values[name].append(measure())
    return {name: tuple(v) for name, v in values.items()}


def busy_seconds() -> float | None:
    """Core seconds that everybody but this process and its finished children has used or, on a virtual machine, been
    given instead of it, since the start of the machine; None where the system does not say."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, stolen = (t / os.sysconf("SC_CLK_TCK") for t in ticks)
    return user + nice + system + irq + softirq + stolen - sum(os.times()[:4])
