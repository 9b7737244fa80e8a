"""Runs: found or trained once, several side by side, stopped cleanly; and tables that pair f with g."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import BRIEF, ROOT

from lib import runs, store, train
from lib.recipes import f_and_g

ONCE = replace(BRIEF, epochs=1, evaluations=1)
FILES = ("weights.safetensors", "history.parquet", "evaluations.parquet")
QUOTA = "mount -t tmpfs none /sys/fs/cgroup && echo 100000 100000 > /sys/fs/cgroup/cpu.max && exec {} -c {!r}"
CUDA = """
import torch
from lib import model, objectives, train
from lib.data import prepare
from lib.recipes import Data, Recipe
prepared = prepare(Data("scenes", 32, 60, 40, 40, 40, 40))
recipe = Recipe(prepared.data, model="smoke", batch=25)
net, kinds = train.fresh(recipe, prepared), []
pairs = train.resident(prepared, train.training_rows(recipe, prepared), model.device())
net.visual.transformer.resblocks[0].mlp.register_forward_hook(lambda *found: kinds.append(found[-1].dtype))
made, before = objectives.batch(pairs, torch.arange(25), recipe, torch.Generator()), net.visual.proj.clone()
value = train.step(net, train.make_optimiser(net, recipe), objectives.loss(net, recipe, *made))
assert model.precision() == "bf16" and kinds == [torch.bfloat16] and value.dtype == torch.float32 and value.isfinite()
assert value.is_cuda and net.visual.proj.dtype == torch.float32 and not torch.equal(before, net.visual.proj)
"""


def content(folder):
    return [(folder / name).read_bytes() for name in FILES]


def test_what_is_in_the_store_is_not_trained_again_and_force_trains_it_once(own_store, prepared):
    recipes, stamps, weights = f_and_g(ONCE, 0), [], []
    for begun in (0, 0, time.time() + 3600, None, None):
        ...


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(own_store, prepared, trained, monkeypatch):
    whole = content(runs.run(trained, prepared))
    monkeypatch.setenv("CLIPMEM_RUNS", str(own_store))
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)

    def stop(share):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        runs.run(trained, prepared, stop)
    assert runs.missing([trained], prepared) and list(own_store.glob("run/*/checkpoint"))
    assert content(runs.run(trained, prepared)) == whole and not runs.missing([trained], prepared)


def test_a_failing_model_stops_the_others_at_once_and_what_is_finished_stays(prepared, monkeypatch):
    monkeypatch.setenv("CLIPMEM_JOBS", "2")
    quick, long, broken = ONCE, replace(ONCE, seed=1, epochs=10_000), replace(ONCE, batch=0)
    with pytest.raises(ZeroDivisionError):
        runs.train_all([quick, long, broken, replace(long, seed=2)], prepared)
    assert runs.missing([quick, long, broken], prepared) == [long, broken]


def test_an_interrupt_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setenv("CLIPMEM_JOBS", "2")

    def work(recipe, on_progress):
        if recipe.seed:
            os.kill(os.getpid(), signal.SIGINT)
        while True:
            on_progress(0.5)
            time.sleep(0.01)

    with pytest.raises(runs.Stopped) as error:
        runs.run_parallel("work", work, [ONCE, replace(ONCE, seed=1)])
    assert error.value._render_traceback_() == [str(error.value)] and "run the cell again" in str(error.value)


def test_as_many_models_as_asked_are_worked_on_at_once_and_results_come_in_order(monkeypatch):
    monkeypatch.setenv("CLIPMEM_JOBS", "3")
    lock, active, most = Lock(), [], []

    def work(recipe, on_progress):
        with lock:
            active.append(recipe)
            most.append(len(active))
        time.sleep(0.02)
        with lock:
            active.remove(recipe)
        return recipe.seed

    assert runs.run_parallel("work", work, [replace(ONCE, seed=s) for s in range(8)]) == list(range(8))
    assert runs.side_by_side() == max(most) == 3
    for nonsense in ("abc", "0", "-1", "2.5", "²"):
        monkeypatch.setenv("CLIPMEM_JOBS", nonsense)
        with pytest.raises(ValueError, match=f"CLIPMEM_JOBS: expected a whole number from 1, got '{nonsense}'"):
            runs.side_by_side()
    monkeypatch.delenv("CLIPMEM_JOBS")
    assert runs.side_by_side() == runs.cores() <= os.cpu_count()


def test_a_containers_quota_counts():
    script = QUOTA.format(sys.executable, "from lib import runs; print(runs.cores())")
    found = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    print(found)
    assert found.stdout == "1\n"
