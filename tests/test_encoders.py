"""Which encoder memorizes: strengths are matched, falls are interpolated, as naive forms say; and a study in small."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import encoders, models, objectives, sslmem, sweep, tables
from lib.recipes import f_and_g

COLUMNS = [f"image_{i}" for i in range(len(sslmem.STRENGTHS))]


@pytest.fixture
def made_up(prepared, tiny, monkeypatch):
    """Distances of f and g of two seeds: g moves external pairs by .1, .2, ... .7 with rising strength."""
    rng, of = np.random.default_rng(0), {}
    rows = np.concatenate([prepared.subsets["candidate"], prepared.subsets["external"]])
    for recipe in (r for seed in (0, 1) for r in f_and_g(tiny, seed)):
        table = pd.DataFrame(rng.random((len(rows), 8)), columns=["text", *COLUMNS])
        if "independent" in recipe.trained_on:
            spread = table.loc[40:, COLUMNS] - table.loc[40:, COLUMNS].mean()
            table.loc[40:, COLUMNS] = spread + 0.1 * np.arange(1, 8)
        of[recipe] = table.assign(pair_id=prepared.pairs.pair_ids[rows])
    monkeypatch.setattr(tables, "kept", lambda name, recipe, prepared, make: of[recipe])
    return of


@pytest.mark.parametrize(
    ("moved", "below", "share", "matched"),
    [
        (0.25, 1, 0.5, True),  # half-way between the second and the third strength
        (0.68, 5, 0.8, True),
        (0.03, 0, 0.0, False),  # captions differ less than the weakest views do
        (0.9, 5, 1.0, False),  # captions differ more than the strongest ones do
    ],
)
def test_images_are_augmented_as_strongly_as_captions_differ(prepared, tiny, made_up, moved, below, share, matched):
    for recipe, table in made_up.items():
        if "independent" in recipe.trained_on:
            table.loc[40:, "text"] += moved - table.loc[40:, "text"].mean()
    found = encoders.at_matched_strength(tiny, [0, 1], prepared)
    assert len(found) == 80 and list(found.groupby("seed").size()) == [40, 40]
    for seed in (0, 1):
        f, g = (made_up[r].set_index("pair_id") for r in f_and_g(tiny, seed))
        for row in found[found["seed"] == seed].itertuples():
            of_f, of_g = f.loc[row.pair_id], g.loc[row.pair_id]
            weak, strong = (of_g[COLUMNS[place]] - of_f[COLUMNS[place]] for place in (below, below + 1))
            assert row.image == pytest.approx((1 - share) * weak + share * strong)
            assert row.text == pytest.approx(of_g["text"] - of_f["text"]) and row.matched == matched
            between = (1 - share) * np.array(sslmem.STRENGTHS[below]) + share * np.array(sslmem.STRENGTHS[below + 1])
            assert (row.crop, row.colour) == pytest.approx(tuple(between))
    kinds = prepared.table.set_index("pair_id")["kind"]
    assert found["kind"].tolist() == kinds.loc[found["pair_id"]].tolist()


def scores(values, kind="clean"):
    """A table as of `tables.scores`: two candidates and one external pair under two seeds."""
    rows = [(seed, pair, "external" if pair == 9 else "candidate", kind) for seed in (0, 1) for pair in (3, 4, 9)]
    table = pd.DataFrame(rows, columns=["seed", "pair_id", "subset", "kind"])
    return table.assign(clipmem=[float(v) for v in values])


def test_the_fall_is_of_each_candidate_under_each_seed():
    whole, changed = scores([0.5, 0.4, 0.0, 0.6, 0.3, 0.1]), scores([0.1, 0.2, 0.3, 0.5, 0.5, 0.5], "wrong")
    found = encoders.fall(whole, changed.sample(frac=1, random_state=0)).sort_values(["seed", "pair_id"])
    assert list(found) == ["seed", "pair_id", "kind", "fall"] and found["kind"].unique().tolist() == ["clean"]
    np.testing.assert_allclose(found["fall"], [0.4, 0.2, 0.1, -0.2])


@pytest.mark.parametrize(
    ("displacement", "weak", "strong"),
    [(0.0, 0, 0), (0.1, 0.5, 0), (0.2, 1, 0), (0.35, 0.25, 0.75), (0.4, 0, 1), (3.0, 0, 1)],
)
def test_a_fall_is_interpolated_between_augmentations_and_never_beyond_them(displacement, weak, strong):
    whole = scores([0.9] * 6)
    first = encoders.fall(whole, scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    second = encoders.fall(whole, scores([0.0, 0.1, 0.2, 0.9, 0.2, 0.0]))
    for steps in ([(0.2, first), (0.4, second)], [(0.4, second), (0.2, first)]):
        found = encoders.fall_at(displacement, steps)
        np.testing.assert_allclose(found["fall"], weak * first["fall"] + strong * second["fall"])
        assert found[["seed", "pair_id", "kind"]].equals(first[["seed", "pair_id", "kind"]])


def test_a_small_study_of_encoders(prepared, trained):
    found = encoders.at_matched_strength(trained, [0], prepared)
    assert list(found) == ["pair_id", "image", "text", "crop", "colour", "matched", "seed", "kind"]
    assert set(found["pair_id"]) == set(prepared.pairs.pair_ids[prepared.subsets["candidate"]]) and len(found) == 40
    assert found[["image", "text"]].notna().all().all() and found["crop"].between(0.02, 0.9).all()
    retrained = {"text": replace(trained, frozen="image"), "image": replace(trained, frozen="text")}
    each = {name: tables.scores(r, [0], prepared, 2) for name, r in {"CLIP": trained, **retrained}.items()}
    assert all(len(table) == 80 and table["clipmem"].notna().all() for table in each.values())
    for name in retrained:
        fall = encoders.fall(each["CLIP"], each[name])
        assert set(fall["pair_id"]) == set(found["pair_id"]) and fall["fall"].std() > 0


def test_displacement_is_how_far_g_is_moved(prepared, trained):
    changed = {
        "image augmented": replace(trained, crop=0.5, colour=0.2),
        "image augmented more": replace(trained, crop=0.25, colour=0.4),
        "words dropped": replace(trained, word_dropout=0.3),
        "other captions": replace(trained, captions=5),
    }
    found = encoders.displacement(trained, changed, [0], prepared)
    assert list(found.index) == list(changed) and found["image augmented"] < found["image augmented more"]
    g, rows = sweep.load(f_and_g(trained, 0)[1], prepared), prepared.subsets["external"]
    picture, tokens = torch.from_numpy(prepared.pictures(rows)), torch.from_numpy(prepared.tokens[rows]).long()
    draw = {name: torch.Generator().manual_seed(0) for name in changed}
    with torch.no_grad():
        x = objectives.augment(picture, 0.5, 0.2, draw["image augmented"])
        gap = g.encode_image(models.normalise(picture), normalize=True) - g.encode_image(x, normalize=True)
        assert found["image augmented"] == pytest.approx(float(gap.norm(dim=1).mean()), abs=1e-4)
        models.random_crops(picture, trained.crop, draw["words dropped"])
        fewer = objectives.drop_words(tokens[:, 0], 0.3, draw["words dropped"])
        gap = g.encode_text(tokens[:, 0], normalize=True) - g.encode_text(fewer, normalize=True)
        assert found["words dropped"] == pytest.approx(float(gap.norm(dim=1).mean()), abs=1e-4)
