"""Tables of pairs, units and models against differences taken by hand, and what is computed from them."""

from dataclasses import astuple, replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats as reference

from lib import figures, interventions, objectives, runs, scores, tables, train
from lib.model import encode_image, encode_text, normalise
from lib.recipes import at_scale, f_and_g, mitigations, noise_floor_model
from lib.study import Study
from lib.utility import Labelled

PARADIGMS = ("label", "caption", "view")
STRENGTHS = [f"image_{i}" for i in range(len(scores.STRENGTHS))]


@pytest.fixture
def make(prepared, trained):
    """Return a study of the tiny world from changes to its recipe by condition; "CLIP" is the recipe itself."""

    def study(seeds=(0, 1), **changes):
        conditions = {name: replace(trained, **change) for name, change in ({"CLIP": {}} | changes).items()}
        return Study(
            notebook="", dataset="scenes", scale="smoke", seeds=seeds, base=trained, prepared=prepared, augmentations=2,
            conditions=conditions, models=(), noise_floor=noise_floor_model(trained, seeds), about={},
        )  # fmt: skip

    return study


def by_hand(study, recipe, subsets=scores.DEFAULT_SUBSETS):
    model = runs.load(recipe, study.prepared)
    return scores.measure(model, recipe.objective, study.prepared, 2, subsets).set_index("pair_id")


def of(table, condition, seed):
    return table[(table["condition"] == condition) & (table["seed"] == seed)].set_index("pair_id")


def t_interval(values):
    return np.mean(values), *reference.t.interval(0.95, len(values) - 1, np.mean(values), reference.sem(values))


def test_f_and_g_must_be_of_the_same_pairs():
    table = pd.DataFrame({"role": [*"ffgg"], "seed": 0, "pair_id": [3, 5, 3, 5], "plain": [0.9, 0.8, 0.1, 0.6]})
    assert_allclose(runs.f_minus_g(table, {"plain": "clipmem"}, sign=-1)["clipmem"], [-0.8, -0.2])
    with pytest.raises(ValueError, match="f and g are of different pairs"):
        runs.f_minus_g(table.assign(pair_id=[3, 5, 5, 3]), {"plain": "clipmem"})


def test_scores_of_pairs_are_differences_taken_by_hand(make):
    study = make(more={"n_captions": 2})
    found = tables.score_pairs(study, subsets=scores.SUBSETS, noise_floor=True)
    assert len(found) == 2 * 2 * 4 * 40 and found.drop(columns=["vagueness", "rarity"]).notna().all().all()
    other = by_hand(study, study.noise_floor, scores.SUBSETS)
    for condition, seed in (("CLIP", 0), ("CLIP", 1), ("more", 1)):
        f, g = (by_hand(study, recipe, scores.SUBSETS) for recipe in f_and_g(study.conditions[condition], seed))
        raw, chosen, part = f["contrast"] - g["contrast"], f["subset"] == "candidate", of(found, condition, seed)
        expected = {"clipmem": raw, "clipmem_plain": f["plain"] - g["plain"], "loss_f": f["loss"]}
        expected |= {"similarity_f": f["similarity"], "similarity_g": g["similarity"]}
        expected |= {"clipmem_normalised": raw / np.ptp(raw[chosen]), "noise_floor": f["contrast"] - other["contrast"]}
        assert_allclose(part[list(expected)], pd.DataFrame(expected), atol=1e-12)
        truth = study.prepared.table.set_index("pair_id").loc[f.index, tables.TRUTH[1:]]
        pd.testing.assert_frame_equal(part[tables.TRUTH[1:]], truth)
    default = tables.candidates(tables.score_pairs(study, ["more"]))
    assert_allclose(default["clipmem"], tables.candidates(found).query("condition == 'more'")["clipmem"])


def test_what_was_recorded_along_training_and_that_scores_are_kept(make, prepared, monkeypatch):
    study, y = make(seeds=(0,)), np.arange(40) % 2
    curve, history = tables.during_training(study), tables.histories(study)
    assert curve.groupby("epoch").size().to_dict() == {1: 80, 2: 80} and history.groupby("role").size().eq(2).all()
    f, g = (scores.measure(runs.load(r, prepared), "caption", prepared, 0)["contrast"] for r in f_and_g(study.base, 0))
    assert_allclose(curve.loc[curve["epoch"] == 2, "clipmem"], f - g, atol=1e-6)
    assert history[["loss", "lr", "probe", "image_to_text_r10", "unitmem_1", "unitmem_2"]].notna().all().all()
    images = np.random.default_rng(0).integers(0, 60, (40, 3, 32, 32), dtype=np.uint8)
    images[y == 1, 0] += 190  # red
    bright = Labelled("bright", images[:20], y[:20], images[20:], y[20:], ("star", "heart"), "a" * 64)
    inverse = replace(bright, test_classes=1 - bright.test_classes, fingerprint="b" * 64)  # another entry of the store

    def asked():
        return tables.score_pairs(study), *(interventions.utilities(study, [one]) for one in (bright, inverse))

    pairs, right, wrong = asked()
    assert right["probe_bright"].tolist() == [1] and wrong["probe_bright"].tolist() == [0] and right["tested"][0] == 20
    last = history.query("role == 'f' and epoch == 2")["text_to_image_r10"]
    assert right["text_to_image_r10"].tolist() == last.tolist() and wrong["condition"].tolist() == ["CLIP"]
    monkeypatch.setattr(runs, "load", lambda *_: pytest.fail("measured again"))
    for first, again in zip((pairs, right, wrong), asked(), strict=True):
        pd.testing.assert_frame_equal(first, again)


def test_the_three_paradigms(make, prepared):
    study = make(label={"objective": "label"}, caption={}, view={"objective": "view"})
    del study.conditions["CLIP"]
    own, units, layers = tables.own_scores(study), tables.unit_scores(study), tables.layer_scores(study)
    for name, column, sign in (("label", "probability", 1), ("caption", "contrast", 1), ("view", "distance_image", -1)):
        f, g = (by_hand(study, recipe)[column] for recipe in f_and_g(study.conditions[name], 1))
        part = own[own["seed"] == 1].set_index("pair_id")
        assert_allclose(part[name], sign * (f - g)[part.index], atol=1e-12)
        assert_allclose(part[f"{name}_rank"], [(part[name] <= value).mean() for value in part[name]])
    wide = own.pivot(index="pair_id", columns="seed")
    expected = {(a, b, s): ((a, s), (b, s)) for a, b in combinations(PARADIGMS, 2) for s in (0, 1)}
    expected |= {(a, a, 0): ((a, 0), (a, 1)) for a in PARADIGMS}  # the ceiling: two seeds of one paradigm
    taus = tables.agreement(own)
    tau = taus.set_index(["first", "second", "seed"])["tau"].to_dict()
    assert tau == pytest.approx({k: reference.kendalltau(wide[x], wide[y])[0] for k, (x, y) in expected.items()})
    nearer = [min(tau["label", "caption", s], tau["caption", "view", s]) - tau["label", "view", s] for s in (0, 1)]
    assert_allclose(tables.between(taus), nearer)  # above 0: CLIP lies between the other two
    f, g = (runs.load(recipe, prepared) for recipe in f_and_g(study.conditions["view"], 0))
    found = units.query("condition == 'view' and seed == 0").reset_index(drop=True)
    theirs = scores.unit_scores(f, prepared, train.training_rows(study.conditions["view"], prepared), 2)
    pd.testing.assert_frame_equal(found[theirs.columns], theirs)
    moved = [scores.layer_distances(x, prepared, prepared.subsets["candidate"])["distance"] for x in (f, g)]
    assert_allclose(layers.query("condition == 'view' and seed == 0")["layermem"], moved[1] - moved[0])


def test_values_are_compared_at_the_utility_that_all_reach():
    curves = {  # (probe, unitmem) by evaluation
        "label": [(0.2, 0.1), (0.4, 0.2), (0.8, 0.6), (0.6, 0.9)],  # reaches .5 a quarter of the way from .4 to .8
        "caption": [(0.1, 0.0), (0.3, 0.2), (0.5, 0.4), (0.4, 0.8), (0.5, 1.0)],  # the weakest; falls back
        "view": [(0.6, 0.3), (0.7, 0.5), (0.9, 0.7)],  # was above .5 when first evaluated
    }
    rows = [(name, 0, epoch, *point) for name, points in curves.items() for epoch, point in enumerate(points)]
    history = pd.DataFrame(rows, columns=["condition", "seed", "epoch", "probe", "unitmem"])
    other = history.assign(seed=1, probe=history["probe"] / 2, unitmem=2 * history["unitmem"])
    found = tables.at_matched_utility(pd.concat([other, history]).sample(frac=1, random_state=0), "unitmem")
    found = found.set_index(["condition", "seed"]).loc[[*product(curves, (0, 1))]]
    assert_allclose(found[["unitmem", "probe"]].T, [[0.3, 0.6, 0.4, 0.8, 0.3, 0.6], [0.5, 0.25] * 3])


# captions differ as much as images between the second and the third strength, less than any, more than any
@pytest.mark.parametrize(("moved", "below", "share"), [(0.25, 1, 0.5), (0.03, 0, 0.0), (0.9, 5, 1.0)])
def test_images_are_augmented_as_strongly_as_captions_differ(make, monkeypatch, moved, below, share):
    study, rng, made = make(), np.random.default_rng(0), {}
    pair_ids = study.prepared.pair_ids[np.r_[study.prepared.subsets["candidate"], study.prepared.subsets["external"]]]
    for recipe in (r for seed in (0, 1) for r in f_and_g(study.base, seed)):
        table = pd.DataFrame(rng.random((80, 8)), columns=["text", *STRENGTHS], index=pair_ids)
        if "independent" in recipe.trained_on:  # g moves external pairs by .1, .2, …, .7, and captions by `moved`
            table[40:] += [moved, *0.1 * np.arange(1, 8)] - table[40:].mean()
        made[recipe] = table.rename_axis("pair_id")
    monkeypatch.setattr(runs, "cached", lambda study, name, recipe, measure: made[recipe].reset_index())
    found = interventions.at_matched_strength(study, "CLIP")
    assert len(found) == 80 and found["matched"].eq(moved == 0.25).all()
    expected = (1 - share) * np.array(scores.STRENGTHS[below]) + share * np.array(scores.STRENGTHS[below + 1])
    assert_allclose(found[["crop", "colour"]], np.tile(expected, (80, 1)))
    for seed, part in found.set_index("pair_id").groupby("seed"):
        f, g = (made[recipe].loc[part.index] for recipe in f_and_g(study.base, seed))
        image = (1 - share) * (g - f)[STRENGTHS[below]] + share * (g - f)[STRENGTHS[below + 1]]
        assert_allclose(part[["image", "text"]], np.c_[image, (g - f)["text"]])


def test_a_fall_is_of_each_pair_and_interpolated_between_augmentations_never_beyond_them():
    def pairs(*values):
        return pd.DataFrame({"seed": [0, 0, 1, 1], "pair_id": [3, 4, 3, 4], "corruption": "clean", "clipmem": values})

    whole = pairs(0.5, 0.4, 0.6, 0.3)
    first = interventions.fall(whole, pairs(0.1, 0.2, 0.5, 0.5).sample(frac=1, random_state=0))
    assert first["fall"].tolist() == pytest.approx([0.4, 0.2, 0.1, -0.2])
    second = interventions.fall(whole, pairs(0.0, 0.1, 0.2, 0.9))
    for displacement, weak, strong in ((0, 0, 0), (0.1, 0.5, 0), (0.2, 1, 0), (0.35, 0.25, 0.75), (3, 0, 1)):
        found = interventions.fall_at(displacement, [(0.4, second), (0.2, first)])
        assert_allclose(found["fall"], weak * first["fall"] + strong * second["fall"], atol=1e-12)


def test_displacement_is_how_far_g_is_moved(make, prepared):
    study = make(seeds=(0,), words={"word_dropout": 0.3}, weak={"crop": 0.5}, strong={"crop": 0.25, "colour": 0.4})
    found = interventions.displacement(study, ["words", "weak", "strong"])
    assert list(found.index) == ["words", "weak", "strong"] and found["weak"] < found["strong"]
    g, rows, draw = runs.load(f_and_g(study.base, 0)[1], prepared), prepared.subsets["external"], torch.Generator()
    images, tokens = torch.from_numpy(prepared.images[rows]), torch.from_numpy(prepared.tokens[rows, 0]).long()
    with torch.no_grad():
        crops = objectives.augment(images, 0.5, 0, draw.manual_seed(0))
        moved = [encode_image(g, normalise(images)) - encode_image(g, crops)]
        objectives.augment(images, study.base.crop, 0, draw.manual_seed(0))  # what a batch draws first
        moved.append(encode_text(g, tokens) - encode_text(g, objectives.drop_words(tokens, 0.3, draw)))
    assert found[["weak", "words"]].tolist() == pytest.approx([float(x.norm(dim=1).mean()) for x in moved], abs=1e-5)


def test_only_removed_pairs_drop_out(make, prepared):
    study = make(seeds=(1,), worst={"remove": 7, "remove_by": "clipmem"}, chance={"remove": 7, "remove_by": "random"})
    table, encoders = tables.candidates(tables.score_pairs(study)), interventions.encoder_scores(study)
    left = interventions.without_removed(study, table)
    assert left.groupby("condition").size().to_dict() == {"CLIP": 40, "worst": 33, "chance": 33}
    for name in ("worst", "chance"):
        gone = prepared.pair_ids[runs.left_out(f_and_g(study.conditions[name], 1)[0], prepared)]
        pd.testing.assert_frame_equal(of(left, name, 1), of(table, name, 1).drop(gone))
    models, rows = [runs.load(recipe, prepared) for recipe in f_and_g(study.base, 1)], prepared.subsets["candidate"]
    f, g = (scores.by_encoder(model, prepared, rows)[["image", "text"]] for model in models)
    assert_allclose(of(encoders, "CLIP", 1)[["sslmem_image", "sslmem_text"]], g - f)


def test_mitigations_are_compared_with_plain_clip_by_seed_and_pair():
    rng, keys = np.random.default_rng(0), ["condition", "seed"]
    means = {"CLIP": 0.5, "2 captions": 0.4, "noise after 0.05": 0.3, "combined": 0.35}
    table = pd.DataFrame(product(means, range(3), range(25)), columns=[*keys, "pair_id"]).sample(frac=1, random_state=0)
    table["clipmem"] = table["condition"].map(means) + 0.02 * table["seed"] + rng.normal(0, 0.1, 300)
    table = table.assign(clipmem_normalised=table["clipmem"] / rng.uniform(1, 2, 300), corruption="clean")
    useful = pd.DataFrame(product(means, range(3)), columns=keys).assign(probe=rng.normal(0.6, 0.05, 12), tested=40)
    mean, probe = table.groupby(keys).mean(numeric_only=True), useful.set_index(keys)["probe"]
    rows = interventions.summary(table, useful, "probe").set_index("name")
    assert rows.loc[list(means), "family"].tolist() == ["CLIP", "captions", "noise after", "combined"]
    for name, row in rows.iterrows():
        assert row[["m", "m_low", "m_high"]].tolist() == pytest.approx(t_interval(mean.loc[name, "clipmem"]))
        assert row[["u", "u_low", "u_high"]].tolist() == pytest.approx(t_interval(probe[name]))
    less = interventions.less_memorized(table, "combined")
    falls = [of(table, "CLIP", seed)["clipmem"] - of(table, "combined", seed)["clipmem"] for seed in range(3)]
    assert less.value == pytest.approx(np.mean(falls)) and (less.seeds, less.n) == (3, 25) and less.low < less.value
    more = interventions.more_useful(useful, "probe", "2 captions", "combined")
    assert astuple(more) == pytest.approx((*t_interval(probe["2 captions"] - probe["combined"]), 3, 40))
    relative = 1 - mean.loc["combined"] / mean.loc["CLIP"]
    expected = (*t_interval(relative["clipmem_normalised"] - relative["clipmem"]), 3, 25)
    assert astuple(interventions.range_effect(table, "combined")) == pytest.approx(expected)
    assert set(map(interventions.family, mitigations(at_scale("laptop", "scenes")))) == set(figures.FAMILIES)
