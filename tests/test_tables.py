"""Tables of pairs, units and models against differences taken by hand, and what is computed from them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

from lib import encoders, interventions, objectives, runs, scores, stats, tables, utility
from lib.model import encode_image, encode_text, normalise
from lib.recipes import CORRUPTED, f_and_g
from lib.study import Study
from lib.utility import Labelled

PARADIGMS = ("label", "caption", "view")


@pytest.fixture
def make(prepared, trained):
    """Return a study of the tiny world from changes to its recipe by condition; "CLIP" is the recipe itself."""

    def study(seeds=(0, 1), **changes):
        conditions = {name: replace(trained, **change) for name, change in ({"CLIP": {}} | changes).items()}
        return Study(
            notebook="", dataset="scenes", scale="smoke", seeds=seeds, base=trained, prepared=prepared, augmentations=2,
            conditions=conditions, models=(), about={},
        )  # fmt: skip

    return study


def by_hand(study, recipe, subsets=CORRUPTED):
    return scores.measure(runs.load(recipe), recipe, study.prepared, 2, subsets).set_index("pair_id")


def inside_minus_outside(study, f, g, seed):
    """Return f - g of pairs that f was trained on, or neither, and g - f of pairs that g was."""
    trained_by_g = f.index.isin(study.prepared.pair_ids[study.prepared.half("independent", seed)])
    return (f - g) * np.where(trained_by_g, -1, 1)


def of(table, condition, seed):
    return table[(table["condition"] == condition) & (table["seed"] == seed)].set_index("pair_id")


def test_scores_of_pairs_are_differences_taken_by_hand(make):
    study, subsets = make(more={"n_captions": 2}), ("shared", "pool", "external")
    found = tables.score_pairs(study, subsets=subsets)
    assert len(found) == 2 * 2 * 180 and found.drop(columns=["vagueness", "rarity"]).notna().all().all()
    for condition, seed in (("CLIP", 0), ("CLIP", 1), ("more", 1)):
        f, g = (by_hand(study, recipe, subsets) for recipe in f_and_g(study.conditions[condition], seed))
        part, pool = of(found, condition, seed), (f["subset"] == "pool").to_numpy()
        raw = inside_minus_outside(study, f["contrast"], g["contrast"], seed)
        expected = {"clipmem": raw, "clipmem_plain": inside_minus_outside(study, f["plain"], g["plain"], seed)}
        expected |= {"clipmem_normalised": raw / np.ptp(raw[pool])}
        expected |= {"loss_in": np.where(part["member"] == -1, g["loss"], f["loss"])}
        assert_allclose(part[list(expected)], pd.DataFrame(expected), atol=1e-12)
        assert part["member"].abs().eq(pool).all()
        truth = study.prepared.table.set_index("pair_id").loc[f.index, tables.TRUTH[1:]]
        pd.testing.assert_frame_equal(part[tables.TRUTH[1:]], truth)
    default = tables.pool(tables.score_pairs(study, ["more"]))
    assert_allclose(default["clipmem"], tables.pool(found).query("condition == 'more'")["clipmem"])


def test_what_was_recorded_along_training_and_the_baselines(make, prepared):
    study = make(seeds=(0,))
    curve, history = tables.during_training(study), tables.histories(study)
    assert curve.groupby("epoch").size().to_dict() == {1: 120, 2: 120} and history.groupby("role").size().eq(2).all()
    f, g = (scores.measure(runs.load(r), r, prepared, 0).set_index("pair_id") for r in f_and_g(study.base, 0))
    last = curve[curve["epoch"] == 2].set_index("pair_id")
    assert_allclose(last["clipmem"], inside_minus_outside(study, f["contrast"], g["contrast"], 0), atol=1e-6)
    assert last["loss"].unique() == pytest.approx(history.query("epoch == 2")["loss"].mean())
    assert history[["loss", "lr", "probe", "bits", "unitmem_1", "unitmem_2"]].notna().all().all()
    found = tables.add_baselines(study, tables.score_pairs(study)).set_index("pair_id")
    first = curve[curve["epoch"] == 1].set_index("pair_id")["loss_in"]
    assert_allclose(found["early_loss_in"], first[found.index])
    assert_allclose(found["mean_loss_in"], (first + last["loss_in"])[found.index] / 2)
    assert (
        len(found) == 120
        and found[["augmentation_in", "augmentation_out", "lemon_in", "lemon_out"]].notna().all().all()
    )


def test_scores_are_kept_and_utility_is_measured_anew_on_other_images(make, monkeypatch):
    study, y = make(seeds=(0,)), np.arange(40) % 2
    images = np.random.default_rng(0).integers(0, 60, (40, 3, 32, 32), dtype=np.uint8)
    images[y == 1, 0] += 190  # red
    bright = Labelled("bright", images[:20], y[:20], images[20:], y[20:], ("star", "heart"), "a" * 64)
    inverse = replace(bright, test_classes=1 - bright.test_classes, fingerprint="b" * 64)  # another entry of the store

    def asked():
        return tables.score_pairs(study), *(interventions.utilities(study, [one]) for one in (bright, inverse))

    pairs, right, wrong = asked()
    assert right["probe_bright"].dropna().tolist() == [1] * 20 and wrong["probe_bright"].dropna().tolist() == [0] * 20
    assert right["pair_id"].tolist() == [*range(40)] and right["bits"].notna().all()
    monkeypatch.setattr(runs, "load", lambda *_: pytest.fail("measured again"))
    for first, again in zip((pairs, right, wrong), asked(), strict=True):
        pd.testing.assert_frame_equal(first, again)


def test_the_three_paradigms(make, prepared):
    study = make(label={"objective": "label"}, caption={}, view={"objective": "view"})
    del study.conditions["CLIP"]
    own, units = tables.own_scores(study), tables.unit_scores(study)
    for name, column, sign in (("label", "probability", 1), ("caption", "contrast", 1), ("view", "distance_image", -1)):
        f, g = (by_hand(study, recipe)[column] for recipe in f_and_g(study.conditions[name], 1))
        part = own[own["seed"] == 1].set_index("pair_id")
        assert len(part) == 80
        assert_allclose(part[name], sign * inside_minus_outside(study, f, g, 1)[part.index], atol=1e-12)
        assert_allclose(part[f"{name}_rank"], [(part[name] <= value).mean() for value in part[name]])
    f, g = f_and_g(study.conditions["view"], 0)
    found = units.query("condition == 'view' and seed == 0 and role == 'g'").reset_index(drop=True)
    theirs = scores.unit_scores(runs.load(g), prepared, runs.unplanted(g), 2)
    assert "inverted" not in set(prepared.table.loc[runs.unplanted(g), "corruption"])
    pd.testing.assert_frame_equal(found[theirs.columns], theirs)
    agreement = tables.agreement(own).set_index(["first", "second"])
    assert (agreement["correlation"].abs() <= 1).all() and agreement.loc[("label", "view"), "ceiling"] >= 0


def test_repeats_count_what_the_shared_pairs_say_and_show(prepared):
    found = tables.repeats(prepared).set_index("pair_id")
    rows, shared = prepared.table.set_index("pair_id"), prepared.table[prepared.table["subset"] == "shared"]
    words = {pair: set(text.split()) for pair, text in prepared.table.set_index("pair_id")["caption"].items()}
    for pair_id in found.index[::15]:
        same = (shared["label"] == rows.loc[pair_id, "label"]) & (shared["rarity"] == rows.loc[pair_id, "rarity"])
        assert found.loc[pair_id, "same_kind"] == same.sum()
        alike = sum(len(words[pair_id] & words[o]) / len(words[pair_id] | words[o]) > 0.95 for o in shared["pair_id"])
        assert found.loc[pair_id, "same_caption"] >= alike  # tokens of start and end are common to all
    assert len(found) == 120 and found["same_kind"].max() > 0


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


def test_displacement_is_how_far_g_is_moved(make, prepared):
    study = make(seeds=(0,), words={"word_dropout": 0.3}, weak={"crop": 0.5}, strong={"crop": 0.25, "colour": 0.4})
    found = interventions.displacement(study, ["words", "weak", "strong"])
    assert list(found.index) == ["words", "weak", "strong"] and found["weak"] < found["strong"]
    g, rows, draw = runs.load(f_and_g(study.base, 0)[1]), prepared.subsets["external"], torch.Generator()
    images, tokens = torch.from_numpy(prepared.images[rows]), torch.from_numpy(prepared.tokens[rows, 0]).long()
    with torch.no_grad():
        crops = objectives.augment(images, 0.5, 0, draw.manual_seed(0))
        moved = [encode_image(g, normalise(images)) - encode_image(g, crops)]
        objectives.augment(images, study.base.crop, 0, draw.manual_seed(0))  # what a batch draws first
        moved.append(encode_text(g, tokens) - encode_text(g, objectives.drop_words(tokens, 0.3, draw)))
    assert found[["weak", "words"]].tolist() == pytest.approx([float(x.norm(dim=1).mean()) for x in moved], abs=1e-5)


def test_conditions_are_compared_at_the_loss_that_both_reach():
    losses = {"slow": [4.0, 3.0, 2.0], "fast": [3.0, 2.5, 1.0]}  # compared at 2, two thirds of the way from 2.5 to 1
    rows = [
        {"condition": name, "seed": 0, "pair_id": pair, "subset": subset, "corruption": "clean", "epoch": epoch,
         "loss": loss, "clipmem": epoch + 10 * pair}
        for name, falling in losses.items()
        for epoch, loss in enumerate(falling)
        for pair, subset in ((1, "pool"), (2, "pool"), (3, "external"))
    ]  # fmt: skip
    found = interventions.at_equal_loss(pd.DataFrame(rows)).set_index(["condition", "pair_id"])["clipmem"]
    assert found.to_dict() == pytest.approx(
        {("slow", 1): 12, ("slow", 2): 22, ("fast", 1): 11 + 1 / 3, ("fast", 2): 21 + 1 / 3}
    )


def test_transplants_have_curves_and_a_neutral_donor(make):
    study = make(seeds=(0,), image={"frozen": "text", "evaluations": 2})
    curve = tables.during_training(study, "image")
    assert curve["epoch"].unique().tolist() == [1, 2] and curve["condition"].unique() == ["image"]
    found = interventions.at_equal_loss(pd.concat([curve, tables.during_training(study, "CLIP")]))
    assert len(found) == 2 * 80 and found["clipmem"].notna().all()


def test_swap_test_and_captions(make, prepared):
    study = make()
    found = interventions.swap_test(study)
    f, g = (runs.load(recipe) for recipe in f_and_g(study.base, 1))
    expected = encoders.swap_parts(f, g, prepared, 1)
    part = found[found["seed"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(part[expected.columns], expected)
    by_caption = interventions.by_caption(study)
    first = by_caption.query("seed == 1 and caption == 0").set_index("pair_id")["clipmem"]
    assert len(by_caption) == 2 * 5 * 120 and by_caption["corruption"].notna().all()
    assert_allclose(first, part.set_index("pair_id").loc[first.index, "clipmem"], atol=1e-5)


def test_mitigations_are_compared_with_plain_clip_by_seed_and_item():
    rng, keys = np.random.default_rng(0), ["condition", "seed"]
    means = {"CLIP": 0.5, "5 captions": 0.4, "text noise 0.5": 0.3, "image augmented": 0.35}
    means["a fifth of the epochs"] = 0.4
    table = pd.DataFrame(product(means, range(3), range(25)), columns=[*keys, "pair_id"]).sample(frac=1, random_state=0)
    table["clipmem"] = table["condition"].map(means) + 0.02 * table["seed"] + rng.normal(0, 0.1, len(table))
    table = table.assign(clipmem_normalised=table["clipmem"] / 2, corruption="clean", subset="pool")
    useful = table[[*keys, "pair_id"]].assign(
        bits=rng.normal(5, 1, len(table)), probe=np.where(table["pair_id"] < 20, 1.0, np.nan)
    )
    rows = interventions.summary(table, useful, "bits").set_index("name")
    assert rows.loc[list(means), "family"].tolist() == ["CLIP", "captions", "noise", "augmented", "epochs"]
    for name, row in rows.iterrows():
        assert row["m"] == pytest.approx(table.loc[table["condition"] == name, "clipmem"].mean())
        assert row["u_low"] < row["u"] < row["u_high"]
    fall = interventions.fall(table, "text noise 0.5", than="5 captions")
    falls = [of(table, "5 captions", s)["clipmem"] - of(table, "text noise 0.5", s)["clipmem"] for s in range(3)]
    assert len(fall) == 75 and fall["fall"].mean() == pytest.approx(np.mean(falls))
    more = interventions.more_useful(useful, "bits", "5 captions", "image augmented")
    by_item = [of(useful, "5 captions", s)["bits"] - of(useful, "image augmented", s)["bits"] for s in range(3)]
    assert more.value == pytest.approx(np.mean(by_item)) and (more.seeds, more.n) == (3, 25)
    assert interventions.more_useful(useful, "probe", "5 captions").n == 20  # items that a measure does not have
    effect = interventions.range_effect(table, ["text noise 0.5"])
    assert effect.value == pytest.approx(0, abs=1e-9)  # divided by the same range everywhere


def test_early_stopping_is_read_where_it_has_memorized_as_much(monkeypatch):
    curve = pd.DataFrame({"seed": 0, "epoch": [1, 2], "clipmem": [0.2, 0.4], "bits": [3.0, 4.0]})
    curves = pd.concat([curve, curve.assign(seed=1, bits=[2.0, 3.0])])
    monkeypatch.setattr(interventions, "early_stopping", lambda study, plain: curves)
    pairs = pd.DataFrame(
        {"condition": "5 captions", "seed": [0, 1], "pair_id": 7, "subset": "pool", "clipmem": [0.3, 0.1]}
    )
    useful = pd.DataFrame({"condition": "5 captions", "seed": [0, 0, 1, 1], "pair_id": [0, utility.GALLERY] * 2})
    found = interventions.against_early_stopping(None, pairs, useful.assign(bits=[5.0, 99.0, 4.0, 99.0]), "5 captions")
    start = 1 / np.log(2)  # what a model before training retrieves
    assert found.value == pytest.approx(((5 - 3.5) + (4 - (start + 2) / 2)) / 2)


def test_what_the_oracle_and_chance_remove(make, prepared):
    study = make(chance={"remove": 0.2, "remove_by": "random"}, oracle={"remove": 0.08, "remove_by": "oracle"})
    found = interventions.removed(study).groupby("condition")["wrong"].mean()
    assert found["oracle"] == 1 and 0 <= found["chance"] < 0.6
    assert stats.over_seeds([found["oracle"]], 1).value == 1


def test_a_power_law_of_epochs_and_pairs_is_found_and_the_sizes_are_those_of_the_plain_recipes(make, trained):
    seeds = pd.DataFrame({"seed": [0, 1], "c": [0.01, 0.02]})
    sizes = pd.DataFrame([(t, n) for t in (1, 4, 15) for n in (1000, 2000, 4000)], columns=["epochs", "pairs"])
    sizes = sizes.merge(seeds, how="cross")
    sizes["clipmem"] = sizes["c"] * sizes["epochs"] ** 1.3 * (sizes["pairs"] / 2000) ** -0.7
    found = interventions.power_law(sizes)
    assert_allclose(found[["scale", "a", "b"]], [[0.01, 1.3, -0.7], [0.02, 1.3, -0.7]], rtol=1e-4)
    larger = replace(trained.data, shared=100)
    study = make(larger={"data": larger, "epochs": 1, "evaluations": 1}, wide={"width": 2.0}, noisy={"text_noise": 1.0})
    each = pd.DataFrame(product(study.conditions, (0, 1), ["pool"]), columns=["condition", "seed", "subset"])
    rows = interventions.by_size(study, each.assign(clipmem=range(8)))
    expected = [("CLIP", 0, 100, 2, 0), ("CLIP", 1, 100, 2, 1), ("larger", 0, 140, 1, 2), ("larger", 1, 140, 1, 3)]
    assert list(rows.itertuples(index=False, name=None)) == expected
