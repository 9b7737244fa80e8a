"""Three paradigms compared: agreement and matched utility against naive forms, and a whole study in small."""

import itertools

import numpy as np
import pandas as pd
import pytest

from lib import paradigms, plans, sweep, tables, train, units
from lib.recipes import f_and_g

NAMES = ("label", "caption", "view")


def made_up(seeds=(0, 1, 2), pairs=12):
    rng, rows = np.random.default_rng(0), []
    for seed in seeds:
        hidden = rng.normal(size=pairs)
        scores = {name: hidden + rng.normal(size=pairs) * spread for name, spread in zip(NAMES, (1, 2, 3), strict=True)}
        rows.append(pd.DataFrame({"seed": seed, "pair_id": rng.permutation(pairs) + 100, **scores}))
    return pd.concat(rows, ignore_index=True).sample(frac=1, random_state=0)


def tau(a, b):
    """Kendall's rank correlation by counting pairs in the same and in the opposite order."""
    signs = [np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in itertools.combinations(sorted(a), 2)]
    return sum(signs) / len(signs)


def test_agreement_counts_pairs_in_the_same_order():
    scores = made_up()
    by = {(name, s): part.set_index("pair_id")[name].to_dict() for name in NAMES for s, part in scores.groupby("seed")}
    found = paradigms.agreement(scores).set_index(["first", "second", "seed"])["tau"].sort_index()
    expected = {(a, b, s): tau(by[a, s], by[b, s]) for a, b in itertools.combinations(NAMES, 2) for s in range(3)}
    for name in NAMES:  # the ceiling: two seeds of one paradigm
        pairs = list(itertools.combinations(range(3), 2))
        ours = sorted(found.xs((name, name)).to_numpy())
        assert ours == pytest.approx(sorted(tau(by[name, s], by[name, t]) for s, t in pairs))
    others = found[[first != second for first, second, _ in found.index]]
    assert others.to_dict() == pytest.approx(expected)


def test_clip_lies_between_where_both_are_nearer_to_it_than_to_each_other():
    taus = pd.DataFrame(
        [("label", "caption", 0, 0.6), ("label", "view", 0, 0.1), ("caption", "view", 0, 0.3), ("view", "view", 0, 0.9),
         ("label", "caption", 1, 0.2), ("label", "view", 1, 0.5), ("caption", "view", 1, 0.7)],
        columns=["first", "second", "seed", "tau"],
    )  # fmt: skip
    np.testing.assert_allclose(paradigms.between(taus), [0.3 - 0.1, 0.2 - 0.5])
    whole = paradigms.agreement(made_up())
    naive = []
    for seed in range(3):
        t = {(r.first, r.second): r.tau for r in whole.itertuples() if r.seed == seed and r.first != r.second}
        naive.append(min(t["label", "caption"], t["caption", "view"]) - t["label", "view"])
    np.testing.assert_allclose(paradigms.between(whole), naive)


def history(curves, seed=0):
    """Epochs 2, 4, ... of (probe, unitmem) by paradigm."""
    rows = [
        {"paradigm": name, "seed": seed, "epoch": 2 * i + 2, "probe": probe, "unitmem": value}
        for name, points in curves.items()
        for i, (probe, value) in enumerate(points)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=1)


def test_values_are_compared_at_the_utility_that_all_reach():
    curves = {
        "label": [(0.2, 0.1), (0.4, 0.2), (0.8, 0.6)],  # reaches .5 a quarter of the way from .4 to .8
        "caption": [(0.1, 0.0), (0.3, 0.2), (0.5, 0.4)],  # the weakest ends with .5
        "view": [(0.6, 0.3), (0.7, 0.5), (0.9, 0.7)],  # was above .5 when first looked at
    }
    other = {name: [(p / 2, 2 * v) for p, v in points] for name, points in curves.items()}
    both = pd.concat([history(curves), history(other, seed=1)])
    found = paradigms.at_matched_utility(both, "unitmem").set_index(["seed", "paradigm"])
    assert found["probe"].to_dict() == pytest.approx({(s, n): (0.5, 0.25)[s] for s in (0, 1) for n in curves})
    expected = {"label": 0.3, "caption": 0.4, "view": 0.3}
    assert found["unitmem"].to_dict() == pytest.approx(
        {(s, n): v * (1 + s) for s in (0, 1) for n, v in expected.items()}
    )


def test_a_probe_that_falls_back_counts_from_where_it_first_was_as_good():
    curves = {
        "label": [(0.2, 0.1), (0.5, 0.2), (0.4, 0.9), (0.5, 1.0)],  # the weakest: .5 at the second look
        "caption": [(0.3, 0.1), (0.6, 0.4), (0.45, 0.8), (0.9, 1.0)],
    }
    found = paradigms.at_matched_utility(history(curves), "unitmem").set_index("paradigm")["unitmem"]
    assert found.to_dict() == pytest.approx({"label": 0.2, "caption": 0.1 + 0.3 * 2 / 3})


def test_a_small_study_of_all_three(prepared, trained):
    conditions, candidates = plans.paradigms(trained), set(prepared.pairs.pair_ids[prepared.subsets["candidate"]])
    direct = paradigms.direct_scores(conditions, [0], prepared, 2)
    assert len(direct) == 40 and set(direct["pair_id"]) == candidates
    ranks = [f"{name}_rank" for name in NAMES]
    assert set(direct) == {"seed", "pair_id", "kind", "mislabelled", "rarity", *NAMES, *ranks}
    assert direct[[*NAMES, *ranks]].notna().all().all() and direct[list(NAMES)].std().min() > 0
    for name, score in paradigms.DIRECT.items():
        scores = tables.scores(conditions[name], [0], prepared, 2).set_index("pair_id")[score]
        np.testing.assert_array_equal(direct[name], scores.loc[direct["pair_id"]])
        places = [(direct[name] <= value).mean() for value in direct[name]]
        np.testing.assert_allclose(direct[f"{name}_rank"], places)
    truth = prepared.table.set_index("pair_id").loc[direct["pair_id"]]
    assert direct["mislabelled"].tolist() == truth["mislabelled"].tolist() and truth["mislabelled"].any()
    assert direct["kind"].tolist() == truth["kind"].tolist()
    of_units = paradigms.unit_scores(conditions, [0], prepared, 2)
    assert of_units.groupby(["paradigm", "seed", "layer"]).size().to_dict() == {
        (name, 0, layer): 256 for name in NAMES for layer in (1, 2)
    }
    assert of_units[["unitmem", "classmem"]].stack().between(0, 1).all()
    layers = paradigms.layer_scores(conditions, [0], prepared)
    assert set(layers) == {"paradigm", "seed", "layer", "layermem"} and len(layers) == 6
    parts = [tables.histories(r, [0], prepared).assign(paradigm=name) for name, r in conditions.items()]
    along = pd.concat(parts).query("role == 'f'").dropna(subset=["probe"])
    assert along.groupby("paradigm").size().to_dict() == dict.fromkeys(NAMES, 2)
    assert len(paradigms.at_matched_utility(along, "unitmem_2")) == 3


def test_layermem_is_how_much_further_g_moves_than_f(prepared, trained):

    (found,) = paradigms.layer_scores({"view": plans.paradigms(trained)["view"]}, [0], prepared).groupby("paradigm")
    models = [sweep.load(r, prepared) for r in f_and_g(plans.paradigms(trained)["view"], 0)]
    f, g = (units.layer_distances(m, prepared, prepared.subsets["candidate"]).mean(axis=1) for m in models)
    np.testing.assert_allclose(found[1].sort_values("layer")["layermem"], g - f, atol=1e-6)


def test_units_are_of_the_images_that_f_was_trained_on(prepared, trained):

    found = paradigms.unit_scores({"caption": trained}, [0], prepared, 2)
    own = units.table(sweep.load(trained, prepared), prepared, train.training_rows(trained, prepared), 2)
    np.testing.assert_allclose(found["unitmem"], own["unitmem"], atol=1e-6)
    np.testing.assert_allclose(found["classmem"], own["classmem"], atol=1e-6)
