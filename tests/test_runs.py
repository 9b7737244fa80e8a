"""Runs: found or trained once, several side by side, killed and continued; and what a notebook trains."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
from conftest import BRIEF, ROOT, TINY
from joblib import cpu_count
from safetensors.torch import load_file
from test_data import columns, write_parquet

from lib import runs, store, train
from lib.data import prepare
from lib.photos import DataError
from lib.recipes import CONDITIONS, all_models, depends_on, f_and_g

ONCE = replace(BRIEF, epochs=1, evaluations=1)
KILLED = """if True:  # after two of four epochs
    import os; from conftest import TINY; from lib import runs, train
    train.CHECKPOINT_SECONDS, epochs = 0.0, []
    runs.run(TINY, lambda: epochs.append(1) or len(epochs) < 2 or os.kill(os.getpid(), 9))
"""


def test_what_is_in_the_store_is_not_made_again_until_it_is_forgotten_and_tables_need_no_weights(monkeypatch):
    recipes, found, calls = f_and_g(ONCE, 0), [], []
    for forgotten in (False, False, True):
        if forgotten:
            runs.forget(recipes)
            assert runs.missing(recipes) == [*recipes]
        runs.train_all(recipes)
        runs.cached("test", recipes[0], lambda model, recipe: calls.append(recipe) or runs.history(recipe))
        found.append([(runs.run(recipe) / "DONE").stat().st_mtime_ns for recipe in recipes])
    assert found[0] == found[1] and not set(found[1]) & set(found[2]) and len(calls) == 2
    before = [runs.history(recipes[0]), runs.evaluations(recipes[0])]
    store.remove("run")
    monkeypatch.setattr(train, "train", None)
    after = [runs.history(recipes[0]), runs.evaluations(recipes[0])]
    assert all(old.equals(new) for old, new in zip(before, after, strict=True)) and len(runs.missing(recipes)) == 2


def test_a_run_that_is_killed_is_continued_to_the_same_bits(own_store, tmp_path, monkeypatch):
    environ, epochs = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}, []
    assert subprocess.run([sys.executable, "-c", KILLED], env=environ).returncode == -signal.SIGKILL
    continued = runs.run(TINY, lambda: epochs.append(1))
    monkeypatch.setenv("CLIPMEM_RUNS", str(tmp_path / "other"))
    whole = runs.run(TINY)
    for name in ("weights.safetensors", "history.parquet", "evaluations.parquet"):
        assert (continued / name).read_bytes() == (whole / name).read_bytes()
    assert len(epochs) == 2 and whole != continued


def test_models_trained_side_by_side_in_bf16_have_the_bits_of_those_trained_one_at_a_time(monkeypatch):
    recipes, found = [replace(BRIEF, seed=seed) for seed in range(20, 24)], []
    other = runs.run_key(BRIEF)
    monkeypatch.setenv("CLIPMEM_PRECISION", "bf16")
    assert runs.run_key(BRIEF) != other
    for jobs in ("1", "2"):
        monkeypatch.setenv("CLIPMEM_JOBS", jobs)
        runs.train_all(recipes)
        found.append([(runs.run(recipe) / "weights.safetensors").read_bytes() for recipe in recipes])
        runs.forget(recipes)
    assert found[0] == found[1]


def test_a_failing_model_stops_the_others_and_what_is_finished_stays(monkeypatch):
    monkeypatch.setenv("CLIPMEM_JOBS", "2")
    long, broken = replace(ONCE, seed=1, epochs=10_000), replace(ONCE, batch=0)
    with pytest.raises(RuntimeError, match="split_size"):
        runs.train_all([ONCE, long, broken, replace(long, seed=2)])
    assert runs.missing([ONCE, long, broken]) == [long, broken]


def test_as_many_as_asked_are_worked_on_at_once_and_an_interrupt_stops_them_all(monkeypatch):
    assert runs.jobs() == cpu_count()
    monkeypatch.setenv("CLIPMEM_JOBS", "3")
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background may have it ignored
    three, recipes = Barrier(3), [replace(ONCE, seed=seed) for seed in range(9)]

    def work(recipe, on_epoch):
        three.wait(timeout=10)
        if recipe.seed == 8:
            os.kill(os.getpid(), signal.SIGINT)
        while recipe.seed > 5:
            on_epoch()
        return recipe.seed

    assert runs.side_by_side("work", work, recipes[:6]) == list(range(6))
    with pytest.raises(KeyboardInterrupt):
        runs.side_by_side("work", work, recipes[6:])
    signal.signal(signal.SIGINT, usual)


def test_a_removal_leaves_out_what_f_and_g_of_another_seed_say_and_takes_as_many_steps(data, trained):
    removal = replace(trained, epochs=4, remove=0.5, remove_by="clipmem", trained_on=("candidate",))
    f, g = depends_on(removal)
    last = [found[found["epoch"] == 2].set_index("pair_id")["contrast"] for found in map(runs.evaluations, (f, g))]
    rows, saw = data.training_rows(removal), data.pair_ids[data.half("candidate", f.seed)]
    clipmem = (last[0] - last[1])[data.pair_ids[rows]] * np.where(np.isin(data.pair_ids[rows], saw), 1, -1)
    assert data.pair_ids[runs.removed(removal)].tolist() == clipmem.nlargest(20).index.tolist() and len(rows) == 40
    histories = [runs.history(one) for one in (trained, replace(trained, epochs=4, remove=0.5, remove_by="oracle"))]
    assert [len(history) for history in histories] == [2, 4]  # of 100 / 25 and of 50 / 25 steps
    assert [history["lr"].iloc[-1] for history in histories] == [train.learning_rate(trained, 7, 8)] * 2


def test_a_frozen_tower_comes_from_a_model_that_saw_neither_half(data, trained):
    recipe = replace(trained, frozen="text", evaluations=1)
    (donor,) = depends_on(recipe)
    assert not np.isin(data.training_rows(donor), data.subsets["pool"]).any()
    ours, theirs = (load_file(runs.run(one) / "weights.safetensors") for one in (recipe, donor))
    kept = {name for name, values in ours.items() if (values == theirs[name]).all()}
    of_text = {name for name in ours if not name.startswith(("visual.", "logit_"))}
    assert kept >= of_text and len(kept) < len(ours)


def test_a_plan_has_the_sizes_and_conditions_that_the_data_allow_and_a_model_is_wanted_once(tmp_path):
    first, third, fourth = (next(name for name in CONDITIONS if name.startswith(f"0{i}")) for i in (1, 3, 4))
    texts = columns(500)["captions"]
    path = write_parquet(tmp_path / "mine.parquet", columns(500, remark=texts, note=[own[:1] for own in texts]))
    with pytest.warns(UserWarning, match="smaller than asked for"):
        one, two = (runs.plan(fourth, "smoke", path, captions) for captions in ("note", "remark, note"))
    assert one["CLIP"].data.caption_columns == ("note",) and two["CLIP"].data.caption_columns == ("remark", "note")
    assert [*one["CLIP"].data.sizes().values()] == [114, 114, 57, 142, 71] and one["noisy"].data.pool == 228
    assert set(CONDITIONS[fourth](one["CLIP"])) - set(one) == {"5 captions"}
    read = prepare.cache_info().misses
    assert [prepare(r.data).config for r in one.values()] and prepare.cache_info().misses == read  # all are in memory
    with pytest.raises(DataError, match="class labels and found none"):
        runs.plan(first, "smoke", path, "note")
    wanted = runs.wanted(["00_tour", third, third], 2, "smoke", "scenes")
    assert wanted == all_models(runs.plan(third, "smoke", "scenes"), [0, 1])
