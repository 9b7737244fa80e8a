"""Tables of pairs, units and models against differences taken by hand, and what is computed from them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from lib import runs, scores, tables
from lib.recipes import CORRUPTED, OBJECTIVES, Study, f_and_g
from lib.tables import TRUTH
from lib.utility import Labelled


@pytest.fixture
def make(trained):
    """Return a study of the tiny world from changes to its recipe by condition; "CLIP" is the recipe itself."""

    def study(seeds=(0, 1), **changes):
        return Study({name: replace(trained, **change) for name, change in ({"CLIP": {}} | changes).items()}, seeds, 2)

    return study


def by_hand(recipe, data, views=2, subsets=CORRUPTED):
    return scores.measure(runs.load(recipe), recipe, data, views, subsets).set_index("pair_id")


def saw_minus_did_not(data, f, g, seed):
    """Return f - g of pairs that f was trained on, or neither, and g - f of pairs that g was."""
    return (f - g) * np.where(f.index.isin(data.pair_ids[data.half("independent", seed)]), -1, 1)


def of(table, condition, seed):
    return table[(table["condition"] == condition) & (table["seed"] == seed)].set_index("pair_id")


def test_tables_pair_f_with_g_and_models_that_conditions_share_are_measured_once(make):
    study, calls = make(again={}, jitter={"color_jitter": 0.1}), []

    def measure(model, recipe):
        calls.append(recipe)
        value = recipe.seed * 100 + recipe.color_jitter * 100 + (recipe.trained_on[1] == "candidate")
        return pd.DataFrame({"pair_id": [5, 3], "value": value})

    both = [tables.measure_all(study, "values", measure) for _ in range(2)][1]
    assert len(calls) == len(set(calls)) == 8 and set(both["role"][::4]) == {"f"}
    assert both["value"][::2].tolist() == [1, 0, 101, 100] * 2 + [11, 10, 111, 110]
    assert tables.measure_all(study, "values", measure, ["jitter"], "f")["value"].tolist() == [11, 11, 111, 111]


def test_scores_of_pairs_are_differences_taken_by_hand(make, data):
    study, subsets = make(more={"n_captions": 2}), ("shared", "pool", "external")
    found = tables.score_pairs(study, subsets=subsets)
    assert len(found) == 2 * 2 * 180 and found.drop(columns=["vagueness", "rarity"]).notna().all().all()
    for condition, seed in (("CLIP", 0), ("CLIP", 1), ("more", 1)):
        f, g = (by_hand(recipe, data, 2, subsets) for recipe in f_and_g(study.conditions[condition], seed))
        part, pool = of(found, condition, seed), (f["subset"] == "pool").to_numpy()
        expected = {"clipmem": saw_minus_did_not(data, f["contrast"], g["contrast"], seed)}
        expected |= {"loss_in": np.where(part["member"] == -1, g["loss"], f["loss"])}
        assert_allclose(part[list(expected)], pd.DataFrame(expected), atol=1e-12)
        assert part["member"].abs().eq(pool).all()
        pd.testing.assert_frame_equal(part[TRUTH[1:]], data.table.set_index("pair_id").loc[f.index, TRUTH[1:]])
    alone = tables.pool(tables.score_pairs(study, ["more"]))  # pool and external pairs, if no others are asked for
    assert_allclose(alone["clipmem"], tables.pool(found).query("condition == 'more'")["clipmem"])


def test_what_was_recorded_along_training_and_the_baselines(make, data):
    study = make(seeds=(0,), transplant={"frozen": "text", "evaluations": 2})
    curve, history = tables.during_training(study), tables.collect(study, runs.history, ["CLIP"])
    assert curve.groupby("epoch").size().to_dict() == {1: 120, 2: 120} and curve["condition"].unique() == ["CLIP"]
    f, g = (by_hand(recipe, data, views=0) for recipe in f_and_g(study.conditions["CLIP"], 0))
    _, last = (curve[curve["epoch"] == epoch].set_index("pair_id") for epoch in (1, 2))
    assert_allclose(last["clipmem"], saw_minus_did_not(data, f["contrast"], g["contrast"], 0), atol=1e-6)
    assert last["loss"].unique() == pytest.approx(history.query("epoch == 2")["loss"].mean())
    assert history[["loss", "lr", "probe", "bits", "unitmem_1", "unitmem_2"]].notna().all().all()
    assert tables.during_training(study, "transplant")["epoch"].unique().tolist() == [1, 2]


def test_scores_are_kept_and_utility_is_measured_anew_on_other_images(make, monkeypatch):
    study, y = make(seeds=(0,)), np.arange(40) % 2
    images = np.random.default_rng(0).integers(0, 60, (40, 3, 32, 32), dtype=np.uint8)
    images[y == 1, 0] += 190  # red
    bright = Labelled("bright", images[:20], y[:20], images[20:], y[20:], "a" * 64)
    inverse = bright._replace(test_classes=1 - bright.test_classes, fingerprint="b" * 64)  # another entry of the store

    def asked():
        return tables.score_pairs(study), *(tables.utilities(study, [one]) for one in (bright, inverse))

    pairs, right, wrong = asked()
    assert right["probe_bright"].dropna().tolist() == [1] * 20 and wrong["probe_bright"].dropna().tolist() == [0] * 20
    assert right["pair_id"].tolist() == [*range(40)] and right["bits"].notna().all()
    monkeypatch.setattr(runs, "load", lambda *_: pytest.fail("measured again"))
    for first, again in zip((pairs, right, wrong), asked(), strict=True):
        pd.testing.assert_frame_equal(first, again)


def test_each_objective_has_its_own_score_and_units_are_of_images_as_they_are(make, data):
    study = make(**{name: {"objective": name} for name in OBJECTIVES})
    own = {"CLIP": ("contrast", "clipmem", 1)}
    own |= {"supervised": ("probability", "labelmem", 1), "self-supervised": ("distance_image", "sslmem", -1)}
    for name, (column, score, sign) in own.items():
        f, g = (by_hand(recipe, data)[column] for recipe in f_and_g(study.conditions[name], 1))
        part = tables.pool(tables.score_pairs(study, [name])).query("seed == 1").set_index("pair_id")
        assert len(part) == 80
        assert_allclose(part[score], sign * saw_minus_did_not(data, f, g, 1)[part.index], atol=1e-12)
    g = f_and_g(study.conditions["self-supervised"], 0)[1]
    rows = scores.uninverted_rows(g, data)
    assert "inverted" in set(data.table.loc[data.training_rows(g), "corruption"])
    assert "inverted" not in set(data.table.loc[rows, "corruption"])


def test_mitigations_are_compared_with_plain_clip_by_seed_and_item():
    rng, means = np.random.default_rng(0), {"CLIP": 0.5, "5 captions": 0.4, "text noise 0.5": 0.3}
    table = pd.DataFrame(product(means, range(3), range(25)), columns=["condition", "seed", "pair_id"])
    table = table.sample(frac=1, random_state=0).assign(corruption="clean", subset="pool")
    table["clipmem"] = table["condition"].map(means) + 0.02 * table["seed"] + rng.normal(0, 0.1, len(table))
    useful = table[["condition", "seed", "pair_id"]].assign(bits=rng.normal(5, 1, len(table)))
    useful["probe"] = np.where(table["pair_id"] < 20, 1.0, np.nan)  # fewer items
    drop = tables.clipmem_drop(table, "text noise 0.5", than="5 captions")
    drops = [of(table, "5 captions", s)["clipmem"] - of(table, "text noise 0.5", s)["clipmem"] for s in range(3)]
    assert len(drop) == 75 and drop["drop"].mean() == pytest.approx(np.mean(drops))
    both = [useful[useful["condition"] == name] for name in ("5 captions", "text noise 0.5")]
    gain = tables.paired_difference(*both, "bits")
    by_item = [of(useful, "5 captions", s)["bits"] - of(useful, "text noise 0.5", s)["bits"] for s in range(3)]
    assert gain.value == pytest.approx(np.mean(by_item)) and (gain.seeds, gain.n) == (3, 25)
    both = [tables.clipmem_drop(table, name) for name in ("text noise 0.5", "5 captions")]
    assert tables.paired_difference(*both, "drop").value == pytest.approx(np.mean(drops))


def test_values_are_compared_at_the_utility_that_all_reach():
    curves = {  # (probe, unitmem) by evaluation
        "supervised": [(0.2, 0.1), (0.4, 0.2), (0.8, 0.6), (0.6, 0.9)],  # reaches .5 a quarter of the way from .4 to .8
        "CLIP": [(0.1, 0.0), (0.3, 0.2), (0.5, 0.4), (0.4, 0.8), (0.5, 1.0)],  # the weakest; falls back
        "self-supervised": [(0.6, 0.3), (0.7, 0.5), (0.9, 0.7)],  # was above .5 when first evaluated
    }
    rows = [(name, 0, epoch, *point) for name, points in curves.items() for epoch, point in enumerate(points)]
    history = pd.DataFrame(rows, columns=["condition", "seed", "epoch", "probe", "unitmem"])
    other = history.assign(seed=1, probe=history["probe"] / 2, unitmem=2 * history["unitmem"])
    found = tables.at_matched_utility(pd.concat([other, history]).sample(frac=1, random_state=0), "unitmem")
    found = found.set_index(["condition", "seed"]).loc[[*product(curves, (0, 1))]]
    assert_allclose(found[["unitmem", "probe"]].T, [[0.3, 0.6, 0.4, 0.8, 0.3, 0.6], [0.5, 0.25] * 3])
    assert found["beyond"].tolist() == [False] * 4 + [True] * 2
    lower = tables.at_matched_utility(history, "unitmem", share=0.8).set_index("condition").loc[[*curves]]  # at .4
    assert_allclose(lower[["unitmem", "beyond"]].astype(float).T, [[0.2, 0.3, 0.3], [0, 0, 1]])
