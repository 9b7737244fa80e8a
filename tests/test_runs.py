"""Runs: found or trained once, several side by side, stopped cleanly; and tables that pair f with g."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from threading import Barrier
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import BRIEF, ROOT

from lib import runs, store
from lib.recipes import f_and_g

ONCE = replace(BRIEF, epochs=1, evaluations=1)
QUOTA = "mount -t tmpfs none /sys/fs/cgroup && echo 100000 100000 > /sys/fs/cgroup/cpu.max"
CUDA = """
import torch; from lib import data, model, recipes, train
prepared, kinds = data.prepare(recipes.Data("scenes", 32, 60, 40, 40, 40, 40)), []
recipe = recipes.Recipe(prepared.data, model="smoke", batch=25)
net, pairs = train.fresh(recipe, prepared), train.resident(prepared, prepared.subsets["shared"], model.device())
net.visual.transformer.resblocks[0].mlp.register_forward_hook(lambda *found: kinds.append(found[-1].dtype))
row = train.run_epoch(recipe, 0, pairs, net, train.make_optimiser(net, recipe))
assert kinds == [torch.bfloat16] * 2 and net.visual.proj.dtype == torch.float32 and 0 < row["loss"] < 5
"""


def test_what_is_in_the_store_is_not_trained_again_and_force_trains_it_anew_once(prepared):
    recipes, found = f_and_g(ONCE, 0), []
    for forced in (False, False, True, False):
        if forced:
            store.rebuild(time.time())
        runs.train_all(recipes, prepared)
        found.append([(runs.run(recipe, prepared) / "DONE").stat().st_mtime_ns for recipe in recipes])
    assert found[0] == found[1] and found[2] == found[3] and not set(found[0]) & set(found[2])


def test_a_failing_model_stops_the_others_at_once_and_what_is_finished_stays(prepared, monkeypatch):
    monkeypatch.setenv("CLIPMEM_JOBS", "2")
    long, broken = replace(ONCE, seed=1, epochs=10_000), replace(ONCE, batch=0)
    with pytest.raises(ZeroDivisionError):
        runs.train_all([ONCE, long, broken, replace(long, seed=2)], prepared)
    assert runs.missing([ONCE, long, broken], prepared) == [long, broken]


def test_as_many_as_asked_are_worked_on_at_once_and_an_interrupt_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setenv("CLIPMEM_JOBS", "3")
    three, recipes = Barrier(3), [replace(ONCE, seed=seed) for seed in range(9)]

    def work(recipe, on_progress):
        three.wait(timeout=10)
        if recipe.seed == 8:
            os.kill(os.getpid(), signal.SIGINT)
        while recipe.seed > 5:
            on_progress(0.5)
        return recipe.seed

    assert runs.run_parallel("work", work, recipes[:6]) == list(range(6))
    with pytest.raises(runs.Stopped) as error:
        runs.run_parallel("work", work, recipes[6:])
    assert error.value._render_traceback_() == [str(error.value)] and "run the cell again" in str(error.value)


def test_jobs_are_whole_numbers_and_a_containers_quota_of_cores_counts(monkeypatch):
    assert runs.side_by_side() == runs.cores() <= os.cpu_count()
    for nonsense in ("abc", "0", "-1", "2.5", "²"):
        monkeypatch.setenv("CLIPMEM_JOBS", nonsense)
        with pytest.raises(ValueError, match=f"CLIPMEM_JOBS: expected a whole number from 1, got '{nonsense}'"):
            runs.side_by_side()
    script = f'{QUOTA} && echo pretended && {sys.executable} -c "from lib import runs; print(runs.cores())"'
    said = subprocess.run(f"unshare -rm sh -c '{script}'", shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert said in ("", "pretended\n1\n"), "nothing where no container can be pretended"


@pytest.mark.parametrize("rule", ["clipmem", "similarity", "loss"])
def test_removal_leaves_out_what_f_and_g_say(prepared, trained, rule):
    tables = [pd.read_parquet(runs.run(one, prepared) / "evaluations.parquet") for one in f_and_g(trained, 0)]
    f, g = (table.query("subset == 'candidate' and epoch == 2").set_index("pair_id") for table in tables)
    worst = {"clipmem": f["contrast"] - g["contrast"], "similarity": -f["similarity"], "loss": f["loss"]}[rule]
    gone = runs.left_out(replace(trained, remove=7, remove_by=rule), prepared)
    assert prepared.pair_ids[gone].tolist() == worst.nlargest(7).index.tolist()
    chance = [runs.left_out(replace(trained, seed=s, remove=7, remove_by="random"), prepared) for s in (0, 0, 1)]
    assert (chance[0] == chance[1]).all() and not (chance[0] == chance[2]).all()


def test_tables_pair_f_with_g_and_are_measured_once(prepared, trained):
    conditions, calls = {"CLIP": trained, "removed": replace(trained, remove=7, remove_by="random")}, []
    study = SimpleNamespace(conditions=conditions, seeds=(0, 1), prepared=prepared)

    def measure(model, recipe):
        calls.append(recipe)
        value = recipe.seed * 100 + recipe.remove * 10 + (recipe.trained_on[1] == "candidate")
        return pd.DataFrame({"pair_id": [5, 3], "value": value})

    both = [runs.measured(study, "values", measure) for _ in range(2)][1]
    assert len(calls) == len(set(calls)) == 6, "both conditions have one g"
    assert both["value"][::2].tolist() == [1, 0, 101, 100, 71, 0, 171, 100] and set(both["role"][::4]) == {"f"}
    found = runs.f_minus_g(both, {"value": "fall"}, sign=-1)
    assert found["pair_id"].tolist() == [5, 3] * 4 and found["fall"][::2].tolist() == [-1, -1, -71, -71]
    assert runs.measured(study, "values", measure, ["removed"], "f")["value"].tolist() == [71, 71, 171, 171]
    with pytest.raises(ValueError, match="f and g are of different pairs"):
        runs.f_minus_g(both[1:], {"value": "difference"})


def test_progress_in_the_logs_of_run_all_is_marked_and_tells_of_the_notebooks_that_follow(monkeypatch, capsys):
    monkeypatch.setenv("CLIPMEM_LATER", "600")
    monkeypatch.setattr(runs, "DELAY", 0)
    monkeypatch.setenv("CLIPMEM_LOGGED", "1")
    runs.run_parallel("training", lambda recipe, on_progress: on_progress(0.5), [ONCE])
    lines = [line.rstrip() for line in capsys.readouterr().out.split("\r") if line.strip()]
    assert lines and {line[:17] for line in lines} == {"[....] training: "}
    assert {line[-48:] for line in lines} == {" left, then about 10 min for the other notebooks"}


@pytest.mark.skipif(not os.path.exists("/dev/nvidia0"), reason="no NVIDIA GPU")
def test_a_step_on_cuda_is_in_bf16_and_its_weights_are_not():
    subprocess.run(["env", "-u", "CUDA_VISIBLE_DEVICES", sys.executable, "-c", CUDA], cwd=ROOT, check=True)
