"""Runs: found or trained once, several side by side, stopped cleanly; and tables that pair f with g."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import BRIEF, ROOT
from joblib import cpu_count
from safetensors.torch import load_file

from lib import runs, store, tables, train
from lib.recipes import f_and_g, needed_before

ONCE = replace(BRIEF, epochs=1, evaluations=1)
QUOTA = "mount -t tmpfs none /sys/fs/cgroup && echo 100000 100000 > /sys/fs/cgroup/cpu.max"
CUDA = """
import torch; from lib import data, model, recipes, train
prepared, kinds = data.prepare(recipes.Data("scenes", 32, 60, 80, 40, 40, 40)), []
recipe = recipes.Recipe(prepared.data, model="smoke", batch=25)
net, pairs = train.fresh(recipe, prepared), train.resident(prepared, prepared.subsets["shared"], model.device())
net.visual.transformer.resblocks[0].mlp.register_forward_hook(lambda *found: kinds.append(found[-1].dtype))
row = train.run_epoch(recipe, 0, pairs, net, train.make_optimiser(net, recipe))
assert kinds == [torch.bfloat16] * 2 and net.visual.proj.dtype == torch.float32 and 0 < row["loss"] < 5
"""


def test_what_is_in_the_store_is_not_trained_again_and_force_trains_it_anew_once():
    recipes, found = f_and_g(ONCE, 0), []
    for forced in (False, False, True, False):
        if forced:
            store.rebuild(time.time())
        runs.train_all(recipes)
        found.append([(runs.run(recipe) / "DONE").stat().st_mtime_ns for recipe in recipes])
    assert found[0] == found[1] and found[2] == found[3] and not set(found[0]) & set(found[2])


def test_a_run_in_another_precision_is_another_run(trained, monkeypatch):
    name = runs.run_key(trained)
    monkeypatch.setenv("CLIPMEM_PRECISION", "bf16")
    assert runs.run_key(trained) != name
    monkeypatch.setenv("CLIPMEM_PRECISION", "half")
    with pytest.raises(ValueError, match="CLIPMEM_PRECISION: expected fp32 or bf16, got 'half'"):
        runs.run_key(trained)


def test_models_trained_side_by_side_in_bf16_have_the_bits_of_those_trained_alone(monkeypatch):
    monkeypatch.setenv("CLIPMEM_PRECISION", "bf16")
    recipes, weights = [replace(BRIEF, seed=seed) for seed in range(20, 24)], []
    for jobs in ("1", "2"):
        monkeypatch.setenv("CLIPMEM_JOBS", jobs)
        store.rebuild(time.time())
        runs.train_all(recipes)
        weights.append([(runs.run(recipe) / "weights.safetensors").read_bytes() for recipe in recipes])
    assert weights[0] == weights[1]


def test_a_failing_model_stops_the_others_at_once_and_what_is_finished_stays(monkeypatch):
    monkeypatch.setenv("CLIPMEM_JOBS", "2")
    long, broken = replace(ONCE, seed=1, epochs=10_000), replace(ONCE, batch=0)
    with pytest.raises(RuntimeError, match="split_size"):
        runs.train_all([ONCE, long, broken, replace(long, seed=2)])
    assert runs.missing([ONCE, long, broken]) == [long, broken]


def test_as_many_as_asked_are_worked_on_at_once_and_an_interrupt_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setenv("CLIPMEM_JOBS", "3")
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background may have it ignored
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
    signal.signal(signal.SIGINT, usual)
    assert error.value._render_traceback_() == [str(error.value)] and "run the cell again" in str(error.value)


def test_jobs_are_whole_numbers_and_a_containers_quota_of_cores_counts(monkeypatch):
    assert runs.side_by_side() == cpu_count() <= os.cpu_count()
    for nonsense in ("abc", "0", "-1", "2.5", "²"):
        monkeypatch.setenv("CLIPMEM_JOBS", nonsense)
        with pytest.raises(ValueError, match=f"CLIPMEM_JOBS: expected a whole number from 1, got '{nonsense}'"):
            runs.side_by_side()
    monkeypatch.delenv("CLIPMEM_JOBS")
    script = f'{QUOTA} && echo pretended && {sys.executable} -c "from lib import runs; print(runs.side_by_side())"'
    said = subprocess.run(f"unshare -rm sh -c '{script}'", shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert said in ("", "pretended\n1\n"), "nothing where no container can be pretended"


@pytest.mark.parametrize("rule", ["clipmem", "held-out similarity", "early loss"])
def test_removal_leaves_out_what_f_and_g_of_another_seed_say(prepared, trained, rule):
    removal = replace(trained, epochs=4, remove=0.5, remove_by=rule)  # as many steps as two epochs without removal
    f, g = needed_before(removal)
    tables = [pd.read_parquet(runs.run(one) / "evaluations.parquet") for one in (f, g)]
    last, first = ([t[t["epoch"] == epoch].set_index("pair_id") for t in tables] for epoch in (2, 1))
    assert f.seed == 1 and f.epochs == 2
    score, own = {}, set(prepared.pair_ids[prepared.half("candidate", f.seed)])
    for pair in prepared.pair_ids[prepared.subsets["pool"]]:
        knows, other = (0, 1) if pair in own else (1, 0)
        difference = last[knows].loc[pair, "contrast"] - last[other].loc[pair, "contrast"]
        similarity, loss = -last[other].loc[pair, "similarity"], first[knows].loc[pair, "loss"]
        score[pair] = {"clipmem": difference, "held-out similarity": similarity, "early loss": loss}[rule]
    alone = replace(removal, trained_on=("candidate",))  # without shared pairs, as in the removal study
    rows, gone = train.training_rows(alone, prepared), runs.suspicious(alone)
    expected = sorted(prepared.pair_ids[rows], key=lambda pair: -score[pair])[:20]
    assert prepared.pair_ids[gone].tolist() == expected and len(rows) == 40


def test_removal_by_the_truth_takes_the_swapped_pairs_first_and_by_chance_any(prepared, trained):
    oracle = replace(trained, remove=0.1, remove_by="oracle")  # 10 pairs; 8 of the 40 candidates are swapped
    for share, wrong in ((0.1, 8), (0.05, 5)):
        gone = runs.suspicious(replace(oracle, remove=share))
        assert len(gone) == round(100 * share)
        assert (prepared.table.loc[gone, "corruption"] == "swapped").sum() == wrong
    chance = [runs.suspicious(replace(trained, seed=s, remove=0.1, remove_by="random")) for s in (0, 0, 1)]
    assert np.array_equal(*chance[:2]) and not np.array_equal(*chance[1:])
    assert runs.suspicious(trained) is None


def test_a_run_with_removal_takes_as_many_steps_as_one_without(trained):
    removal = replace(trained, epochs=4, remove=0.5, remove_by="oracle")
    histories = [pd.read_parquet(runs.run(one) / "history.parquet") for one in (trained, removal)]
    assert [len(history) for history in histories] == [2, 4]  # of 100 / 25 and of 50 / 25 steps
    last = [train.learning_rate(trained, 7, 8)] * 2
    assert [history["lr"].iloc[-1] for history in histories] == last


def test_a_transplant_keeps_the_tower_of_a_donor_that_saw_neither_half(prepared, trained):
    recipe = replace(trained, frozen="text", evaluations=1)
    (donor,) = needed_before(recipe)
    assert not np.isin(train.training_rows(donor, prepared), prepared.subsets["pool"]).any()
    ours, theirs = (load_file(runs.run(one) / "weights.safetensors") for one in (recipe, donor))
    kept = {name for name, weights in ours.items() if (weights == theirs[name]).all()}
    assert kept >= {name for name in ours if train.tower_of(name) == "text"} and len(kept) < len(ours)


def test_tables_pair_f_with_g_and_are_measured_once(trained):
    other = replace(trained, colour=0.1)
    conditions, calls = {"CLIP": trained, "again": trained, "colour": other}, []
    study = SimpleNamespace(conditions=conditions, seeds=(0, 1))

    def measure(model, recipe):
        calls.append(recipe)
        value = recipe.seed * 100 + recipe.colour * 100 + (recipe.trained_on[1] == "candidate")
        return pd.DataFrame({"pair_id": [5, 3], "value": value})

    both = [tables.measured(study, "values", measure) for _ in range(2)][1]
    assert len(calls) == len(set(calls)) == 8, "two conditions are the same models"
    assert both["value"][::2].tolist() == [1, 0, 101, 100] * 2 + [11, 10, 111, 110] and set(both["role"][::4]) == {"f"}
    assert tables.measured(study, "values", measure, ["colour"], "f")["value"].tolist() == [11, 11, 111, 111]


def test_what_the_model_that_saw_a_pair_says_stands_beside_what_the_other_one_says(prepared, trained):
    study = SimpleNamespace(conditions={"CLIP": trained}, seeds=(0, 1))
    pairs = prepared.pair_ids[prepared.subsets["pool"]]
    parts = []
    for seed in study.seeds:
        for role, value in (("f", 1.0), ("g", 2.0)):
            parts.append(
                pd.DataFrame({"pair_id": pairs, "value": value, "condition": "CLIP", "seed": seed, "role": role})
            )
    found = tables.in_minus_out(study, table := pd.concat(parts))
    for seed, part in found.groupby("seed"):
        saw = part["pair_id"].isin(prepared.pair_ids[prepared.half("candidate", seed)])
        assert (part["member"] == np.where(saw, 1, -1)).all() and saw.sum() == 40
        assert (part["value_in"] == np.where(saw, 1, 2)).all() and (part["value_out"] == np.where(saw, 2, 1)).all()
    with pytest.raises(ValueError, match="f and g are of different pairs"):
        tables.in_minus_out(study, table[1:])


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
    subprocess.run(
        ["env", "-u", "CUDA_VISIBLE_DEVICES", "-u", "CLIPMEM_PRECISION", sys.executable, "-c", CUDA],
        cwd=ROOT,
        check=True,
    )
