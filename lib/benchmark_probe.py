"""What lib.benchmark has to measure in a Python of its own: start-up, and how time and memory grow with the data."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib import models, objectives, pairs, store, sweep, train
from lib.benchmark_work import captions, made_up, synthetic, untrained
from lib.data import Prepared
from lib.objectives import Resident
from lib.recipes import SCALES, Data, Recipe


def probe(call: str) -> dict[str, Any]:
    """What a function of this file returns in a fresh Python, with the `seconds` that it took from the outside."""
    code = f"import json; from lib import benchmark_probe as b; print(json.dumps(b.{call}))"
    start = perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=store.PROJECT, capture_output=True, text=True, check=False)
    seconds = perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{call} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def megabytes(name: str) -> float:
    """A line of /proc/self/status: VmHWM, the largest resident memory so far, or RssAnon, what is our own now.

    Elsewhere than on Linux the largest resident memory. (On Linux `ru_maxrss` begins at that of the parent.)
    """
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def first_step() -> dict[str, float]:
    """Import lib, build the laptop model and make one training step on photographs' sizes."""
    recipe, where = SCALES["laptop"].photos, models.device()
    model = models.build(recipe.model, recipe.data.pixels, 8000, recipe.data.context, 0).to(where).train()
    images = torch.zeros(recipe.batch, 3, recipe.data.pixels, recipe.data.pixels, dtype=torch.uint8)
    tokens = torch.arange(1, recipe.data.context + 1).expand(recipe.batch, 1, -1)
    every = torch.arange(recipe.batch, device=where)
    resident = Resident(images.to(where), every, tokens.to(where), torch.zeros(recipe.batch, 0), every < 0)
    made = objectives.batch(resident, torch.arange(recipe.batch), recipe, torch.Generator())
    float(train.step(model, train.make_optimiser(model, recipe, where), objectives.loss(model, recipe, *made)))
    return {"megabytes": megabytes("VmHWM")}


def grown(
    model: str, batch: int, pixels: int, count: int, at_once: int = 1, steps: int = 8, folder: str = "", limit: int = 0
) -> dict[str, float]:
    """Seconds to load made-up pairs and of a training step, and the peak memory of the whole process, in MB: `own`
    memory, and `megabytes` with the pages of files, which the system drops when somebody needs their place.

    Args:
        model, batch: that are trained.
        pixels: side of the images.
        count: how many pairs there are; all of them are trained on.
        at_once: number of models, one thread each, as sweep.each runs them.
        steps: that are timed, after two more.
        folder: where `write_mapped` wrote the pairs; without one they are made in memory.
        limit: GB of own memory from which on the kernel refuses more (RLIMIT_DATA), 0 none.
    """
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9),) * 2)
    own, start = [0.0], perf_counter()

    def watch() -> None:
        while True:
            own[0] = max(own[0], megabytes("RssAnon"))
            sleep(0.01 if folder else 1)

    Thread(target=watch, daemon=True).start()
    data = Data("synthetic", pixels, count, 0, 0, 0, 0, context=77 if folder else 24)
    prepared = made_up(data, pairs._read(Path(folder), "synthetic", pixels, ())) if folder else synthetic(data)
    loading = perf_counter() - start
    recipes = [Recipe(data, ("shared",), model, batch=batch, seed=seed) for seed in range(at_once)]
    step = statistics.mean(sweep.each("benchmark", lambda r, note: _step_seconds(r, prepared, steps), recipes))
    return {"loading": loading, "step": step, "own": own[0], "megabytes": megabytes("VmHWM")}


def _step_seconds(recipe: Recipe, prepared: Prepared, steps: int) -> float:
    """Median seconds of a step, the making of its batch included; two more steps come before."""
    model = untrained(recipe, prepared).train()
    optimiser = train.make_optimiser(model, recipe, models.device())
    resident = train.resident(prepared, prepared.subsets["shared"], models.device())
    generator, times = torch.Generator().manual_seed(recipe.seed), [perf_counter()]
    loss_of = train.fastest_loss(recipe, model, resident)
    order = torch.randperm(len(resident.rows), generator=generator)
    for i in range(steps + 2):
        rows = order[torch.arange(i * recipe.batch, (i + 1) * recipe.batch) % len(order)]
        made = objectives.batch(resident, rows, recipe, generator)
        float(train.step(model, optimiser, loss_of(model, recipe, *made, generator)))
        times.append(perf_counter())
    return statistics.median(b - a for a, b in pairwise(times[2:]))


def write_mapped(folder: Path, pixels: int, count: int) -> None:
    """So many pairs of noise, no two alike, as lib.pairs keeps them; never more than 1,000 in memory."""
    block = np.random.default_rng(0).integers(0, 256, (1000, 3 * pixels**2), np.uint8)
    with (folder / "images.bin").open("wb") as file:
        for start in range(0, count, 1000):
            block[:, :8] = np.arange(start, start + 1000)[:, None].view(np.uint8)
            block[: count - start].tofile(file)
    columns = {"captions": captions(count, 77), "pair_id": range(count)}
    table = pd.DataFrame(columns | {name: [None] * count for name in ("label", "label_set", "rarity", "vagueness")})
    table.to_parquet(folder / "table.parquet", index=False)
