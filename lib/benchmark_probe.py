"""What lib.benchmark has to measure in a Python of its own: start-up, peak memory, and how both grow with the data."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
STEPS = 8  # timed steps of `grown`, after two more


def probe(call: str) -> dict[str, Any]:
    """What a function of this file returns in a fresh Python, with the `seconds` that it took from the outside."""
    code = f"import json; from lib import benchmark_probe as b; print(json.dumps(b.{call}))"
    start = perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    seconds = perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{call} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def peak_megabytes() -> float:
    """Largest resident memory of this process so far. (On Linux `ru_maxrss` begins at the size of the process that
    started this one, so the kernel's own mark is read instead.)"""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def first_step() -> dict[str, float]:
    """Import lib, build the laptop model and make one training step on photographs' sizes."""
    import torch

    from lib import models, train
    from lib.recipes import SCALES

    recipe, where = SCALES["laptop"].photos, models.device()
    model = models.build(recipe.model, recipe.data.pixels, 8000, recipe.data.context, 0).to(where).train()
    images = torch.zeros(recipe.batch, 3, recipe.data.pixels, recipe.data.pixels, dtype=torch.uint8)
    tokens = torch.arange(1, recipe.data.context + 1).expand(recipe.batch, -1)
    pairs = train.Resident(images.to(where), torch.arange(recipe.batch, device=where), tokens.to(where))
    batch = train._batch(pairs, torch.arange(recipe.batch), recipe.crop, torch.Generator())
    float(train._step(model, train._optimiser(model, recipe, where), *batch))
    return {"megabytes": peak_megabytes()}


def grown(scale: str, pixels: int, pairs: int, at_once: int) -> dict[str, float]:
    """Milliseconds of a training step on so many made-up pairs, and the peak memory of the whole process.

    Args:
        scale: of the recipe for photographs.
        pixels: side of the images.
        pairs: how many are in memory; all of them are trained on.
        at_once: number of models, one thread each, as sweep.each runs them.
    """
    from lib import sweep, train
    from lib.benchmark_work import synthetic
    from lib.recipes import SCALES, Data

    data = Data("synthetic", pixels, pairs, 0, 0, 0, 0)
    prepared = synthetic(data)
    recipe = replace(SCALES[scale].photos, data=data, trained_on=("shared",))

    def work(recipe: Any, note: Any) -> float:
        return _step_seconds(train, recipe, prepared)

    seconds = sweep.each("benchmark", work, [replace(recipe, seed=seed) for seed in range(at_once)])
    return {"milliseconds": 1000 * statistics.mean(seconds), "megabytes": peak_megabytes()}


def _step_seconds(train: Any, recipe: Any, prepared: Any) -> float:
    """Median seconds of a step, the making of its batch included."""
    import torch

    from lib import models

    where = models.device()
    words, context = len(prepared.token_ids), prepared.tokens.shape[2]
    model = models.build(recipe.model, recipe.data.pixels, words, context, recipe.seed)
    optimiser = train._optimiser(model.to(where).train(), recipe, where)
    pairs = train.resident(prepared, prepared.subsets["shared"], where)
    generator, times = torch.Generator().manual_seed(recipe.seed), [perf_counter()]
    order = torch.randperm(len(pairs.rows), generator=generator)
    for i in range(STEPS + 2):
        rows = order[torch.arange(i * recipe.batch, (i + 1) * recipe.batch) % len(order)]
        float(train._step(model, optimiser, *train._batch(pairs, rows, recipe.crop, generator)))
        times.append(perf_counter())
    return statistics.median(b - a for a, b in pairwise(times[2:]))
