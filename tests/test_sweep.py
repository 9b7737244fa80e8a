"""Studies: nothing is trained twice, tables join f and g rightly, and planted memorization is found."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from lib import plans, progress, stats, store, sweep, tables, train
from lib.data import prepare
from lib.recipes import Data, Recipe, f_and_g


def pair_study(base, seeds):
    return plans.runs(plans.mislabelled(base), seeds)


def test_a_second_call_trains_nothing(prepared, tiny, monkeypatch):
    recipes = pair_study(replace(tiny, epochs=1), [0, 1])
    assert sweep.cached(recipes, prepared) == 0 and sweep.estimate_minutes(recipes, prepared) > 0
    sweep.train_all(recipes, prepared)
    monkeypatch.setattr(train, "train", lambda *args: pytest.fail("trained again"))
    sweep.train_all(recipes, prepared)
    assert sweep.cached(recipes, prepared) == 5 and sweep.estimate_minutes(recipes, prepared) == 0
    tables.measured(recipes[0], prepared, 1)
    monkeypatch.setenv("CLIPMEM_BEGUN", "0")  # by run_all.sh --force: all of them were finished since
    sweep.forget(recipes[:1], prepared)
    assert sweep.cached(recipes, prepared) == 5
    monkeypatch.delenv("CLIPMEM_BEGUN")
    sweep.forget(recipes[:1], prepared)
    assert sweep.cached(recipes, prepared) == 4 and not list(store.root().glob("score/*/DONE"))


def test_a_study_is_f_and_g_of_each_seed_and_one_more_f_for_the_null(tiny):
    f, g = "candidate", "independent"
    planned = [(r.seed, r.trained_on[1]) for r in pair_study(tiny, [0, 1])]
    assert planned == [(0, f), (0, g), (1, f), (1, g), (2, f)]


def test_scores_join_models_and_truth(prepared, tiny):
    base = replace(tiny, epochs=1)
    scores = tables.scores(base, [0, 1], prepared, 2, plans.null_recipe(base, [0, 1]), tables.ALL)
    assert len(scores) == 2 * 160 and scores.notna().all().all()
    f, g = (tables.measured(r, prepared, 2) for r in f_and_g(base, 1))
    one = scores[scores["seed"] == 1].set_index("pair_id")["clipmem"]
    expected = (f["contrast"] - g["contrast"]).set_axis(f["pair_id"])
    np.testing.assert_allclose(one.loc[expected.index], expected)
    truth = prepared.table.set_index("pair_id")
    assert (scores["kind"].to_numpy() == truth.loc[scores["pair_id"], "kind"].to_numpy()).all()
    other = tables.measured(replace(base, seed=2), prepared, 2)
    null = scores[scores["seed"] == 1].set_index("pair_id")["null"]
    np.testing.assert_allclose(null.loc[expected.index], f["contrast"] - other["contrast"])


def test_progress_of_a_sweep_rises_to_its_end(prepared, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMEM_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_REPORTS", 0)
    sweep.train_all(pair_study(replace(tiny, epochs=1), [0]), prepared)
    last = json.loads((tmp_path / "progress.json").read_text())
    assert last["done"] == last["total"] == 3 and last["phase"] == "train 3 models"


def test_what_others_start_from_is_trained_first_and_once(prepared, tiny, monkeypatch):
    base, order, plain = replace(tiny, epochs=1, looks=1), [], train.train
    monkeypatch.setattr(sweep, "side_by_side", lambda: 2)
    monkeypatch.setattr(train, "train", lambda recipe, *rest: order.append(recipe) or plain(recipe, *rest))
    starting = [replace(base, frozen="text"), replace(base, remove=5, remove_by="loss"), replace(base, frozen="image")]
    sweep.train_all([*starting, *f_and_g(base, 0)], prepared)
    assert len(order) == 5 and set(order[:2]) == set(f_and_g(base, 0)) and set(order[2:]) == set(starting)
    sweep.forget(f_and_g(base, 0), prepared)
    order.clear()
    sweep.train_all([replace(recipe, epochs=2) for recipe in starting], prepared)  # none of what they need is asked for
    assert len(order) == len(set(order)) == 5


def test_side_by_side_gives_the_bits_of_one_after_another(prepared, tiny, monkeypatch):
    recipes = pair_study(replace(tiny, epochs=1), [0, 1])
    monkeypatch.setattr(sweep, "side_by_side", lambda: 3)
    together = [(folder / "weights.safetensors").read_bytes() for folder in sweep.train_all(recipes, prepared)]
    sweep.forget(recipes, prepared)
    monkeypatch.setattr(sweep, "side_by_side", lambda: 1)
    alone = [(folder / "weights.safetensors").read_bytes() for folder in sweep.train_all(recipes, prepared)]
    assert together == alone and len(set(alone)) == 5


def test_a_failed_run_stops_the_others_and_is_reported(prepared, tiny, monkeypatch):
    monkeypatch.setattr(sweep, "side_by_side", lambda: 2)

    def work(recipe, note):
        if recipe.seed == 0:
            raise ValueError("broken")
        for _ in range(1000):
            note(0.5)
            time.sleep(0.01)

    with pytest.raises(ValueError, match="broken"):
        sweep.each("work", work, [replace(tiny, seed=s) for s in range(3)])


def test_two_thousand_scenes_are_learned_and_memorized(tmp_path):
    """Retrieval on unseen scenes far above chance, and wrong captions found by what only f can know."""
    data = Data("scenes", 32, 1400, 600, 600, 600, 1000)
    base = Recipe(data, model="smoke", epochs=24, batch=128, lr=2e-3, looks=2)
    prepared = prepare(data, tmp_path)
    f, g = f_and_g(base, 0)
    history = tables.histories(base, [0], prepared).groupby("role")["image_to_text_r10"].max()
    assert history["f"] > 0.10 and history["g"] > 0.10  # chance: 10 of 1,000 = 0.01
    both = tables.measured(f, prepared, 2).merge(prepared.table[["pair_id", "kind", "dose"]], on="pair_id")
    both["clipmem"] = both["contrast"] - tables.measured(g, prepared, 2)["contrast"]
    mean = both.groupby(["subset", "kind"])["clipmem"].mean()
    assert mean["candidate", "wrong"] > mean["candidate", "clean"] + 0.1
    assert mean["candidate", "clean"] > 0.1 and mean["independent", "clean"] < -0.1
    assert abs(mean["external", "clean"]) < 0.05  # both learned from wrong captions: neither is better as a whole
    assert stats.detect(both[both["subset"] == "candidate"].assign(seed=0)).value > 0.75
