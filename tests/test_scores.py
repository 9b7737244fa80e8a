"""Every score against a naive one, units that were made selective by hand, and planted memorization found."""

import gc
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

import lib.model
from lib import runs, scores, train
from lib.model import image_layers, light_crop, normalise
from lib.objectives import other_view
from lib.recipes import f_and_g

COLUMNS = {
    "caption": {"plain", "contrast", "consistency", "similarity", "loss"},
    "label": {"probability"},
    "view": {"distance_image"},
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def vectors(*shape, seed=0):
    return F.normalize(torch.randn(shape, generator=seeded(seed)), dim=-1)


def made(prepared, objective="caption"):
    return train.fresh(replace(TINY, seed=2, objective=objective), prepared).eval()


@pytest.fixture
def model(prepared):
    return made(prepared)


def image(model, x):
    """open_clip's own embeddings of normalised images."""
    return model.encode_image(x, normalize=True).detach()


def text(model, prepared, rows, caption=0):
    return model.encode_text(torch.from_numpy(prepared.tokens[rows, caption]).long(), normalize=True).detach()


def naive_alignment(views, own_text, held_image, held_text, own):
    """The definition for one pair, one cosine at a time; `own`: its place among the held-out pairs, or -1."""
    others = [m for m in range(len(held_text)) if m != own]
    plain, contrast, consistency = [], [], []
    for view in views:
        captions = [float(view @ held_text[m]) for m in others]
        images = [float(held_image[m] @ own_text) for m in others]
        plain.append(float(view @ own_text))
        contrast.append(plain[-1] - sum(captions) / len(captions) - sum(images) / len(images))
        # as MultiMem writes it: half the squared length of a sum, minus half the mean product with others
        own_sum = view + own_text
        products = [float(own_sum @ (held_image[m] + held_text[m])) for m in others]
        consistency.append(float(own_sum @ own_sum) / 2 - sum(products) / len(products) / 2)
    return tuple(sum(form) / len(form) for form in (plain, contrast, consistency))


def test_alignment_and_loss_equal_their_definitions():
    views, texts, held_image, held_text = vectors(4, 6, 8), vectors(6, 8), vectors(5, 8, seed=1), vectors(5, 8, seed=2)
    own = torch.tensor([-1, -1, -1, 0, 4, 2])
    held_text[own[3:]] = texts[3:]
    found = scores.align(views, texts, held_image, held_text, own)
    loss = scores.pair_loss(views[0], texts, held_image, held_text, own, scale=7.0)
    for i in range(6):
        expected = naive_alignment(views[:, i], texts[i], held_image, held_text, own[i])
        assert [float(form[i]) for form in found] == pytest.approx(expected, abs=1e-6)
        same, others = math.exp(7 * views[0, i] @ texts[i]), [m for m in range(5) if m != own[i]]
        by_image = same + sum(math.exp(7 * views[0, i] @ held_text[m]) for m in others)
        by_text = same + sum(math.exp(7 * texts[i] @ held_image[m]) for m in others)
        assert float(loss[i]) == pytest.approx(-(math.log(same / by_image) + math.log(same / by_text)) / 2, abs=1e-5)


@pytest.mark.parametrize("captions", [1, 3])
def test_what_is_measured_is_of_the_trained_captions_and_the_clean_external_pairs(prepared, model, captions):
    found = scores.measure(model, replace(TINY, n_captions=captions), prepared, views=2).set_index("pair_id")
    external = prepared.subsets["external"]
    clean = external[(prepared.table.loc[external, "corruption"] == "clean").to_numpy()]
    assert scores.held_out(prepared).tolist() == clean.tolist() and 0 < len(clean) < len(external)
    held = image(model, normalise(torch.from_numpy(prepared.images[clean]))), text(model, prepared, clean)
    for subset, row in (("pool", prepared.subsets["pool"][3]), ("external", clean[5])):
        rows = prepared.subsets[subset]
        place, images = rows.tolist().index(row), torch.from_numpy(prepared.images[rows])
        views = [image(model, light_crop(images, seeded(a)))[place] for a in range(2)]
        own, plain_image = (5 if subset == "external" else -1), image(model, normalise(images))[place]
        texts = [text(model, prepared, rows, c)[place] for c in range(captions)]
        expected = np.mean([naive_alignment(views, one, *held, own) for one in texts], axis=0)
        measured = found.loc[prepared.pair_ids[row]]
        assert measured[["plain", "contrast", "consistency"]].tolist() == pytest.approx(expected, abs=1e-5)
        assert measured["similarity"] == pytest.approx(np.mean([float(plain_image @ one) for one in texts]), abs=1e-5)


@pytest.mark.parametrize("objective", COLUMNS)
def test_the_columns_follow_the_objective_and_no_number_depends_on_the_subsets_asked_for(prepared, objective):
    model, recipe, subsets = (
        made(prepared, objective),
        replace(TINY, objective=objective),
        ("shared", "pool", "external"),
    )
    for views in (0, 2):
        whole = scores.measure(model, recipe, prepared, views, subsets)
        assert set(whole) == {"pair_id", "subset"} | COLUMNS[objective] and whole.notna().all().all()
        assert whole.groupby("subset").size().to_dict() == {"shared": 60, "pool": 80, "external": 40}
        truth = prepared.table.set_index("pair_id")["subset"]
        assert whole["subset"].tolist() == truth[whole["pair_id"]].tolist() and whole["pair_id"].is_unique
        part = scores.measure(model, recipe, prepared, views, ["external"])
        pd.testing.assert_frame_equal(part, whole[whole["subset"] == "external"].reset_index(drop=True))


def test_inside_is_the_model_that_was_trained_on_the_pair(prepared):
    ids = prepared.pair_ids[np.concatenate([prepared.subsets["pool"], prepared.subsets["external"]])]
    f, g = (pd.DataFrame({"pair_id": ids, "loss": np.arange(120) + start}) for start in (0.0, 1000.0))
    found = runs.inside_outside(f, g, prepared, seed=3).set_index("pair_id")
    for name, sign in (("candidate", 1), ("independent", -1)):
        own = found.loc[prepared.pair_ids[prepared.half(name, 3)]]
        assert (own["member"] == sign).all() and (own["loss_in"] - own["loss_out"] == -1000 * sign).all()
    outside = found.loc[prepared.pair_ids[prepared.subsets["external"]]]
    assert (outside["member"] == 0).all() and (outside["loss_in"] < 1000).all()
    with pytest.raises(ValueError, match="f and g are of different pairs"):
        runs.inside_outside(f, g.iloc[::-1].reset_index(drop=True), prepared, 3)


def test_the_probability_is_of_all_the_classes_of_a_pair(prepared):
    classes, rows = len(prepared.class_names), prepared.subsets["pool"]
    model, targets = made(prepared, "label"), prepared.targets.copy()
    targets[rows[0]] = [0.5, 0.5, *[0] * (classes - 2)]
    targets[rows[1]] = 0
    asked = replace(TINY, objective="label")
    found = scores.measure(model, asked, replace(prepared, targets=targets), views=2)["probability"]
    table, scale = F.normalize(model.classes.detach(), dim=1), float(model.logit_scale.detach().exp())
    views = [image(model, light_crop(torch.from_numpy(prepared.images[rows]), seeded(a))) for a in range(2)]
    odds = [np.exp(scale * x @ table.T) for x in views]
    chances = np.mean([x / x.sum(axis=1, keepdims=True) for x in odds], axis=0)
    assert found[:80].tolist() == pytest.approx((chances * (targets[rows] > 0)).sum(axis=1).tolist(), abs=1e-5)


def test_planted_memorization_is_found(prepared, trained):
    overfit = replace(TINY, epochs=20, evaluations=1)  # 80 steps on 100 pairs
    f, g = (scores.measure(runs.load(recipe), recipe, prepared, 2) for recipe in f_and_g(overfit, 0))
    found = runs.inside_outside(f, g, prepared, 0)
    for form in ("contrast", "plain", "consistency"):
        means = (found[f"{form}_in"] - found[f"{form}_out"]).groupby(found["subset"]).mean()
        assert means["pool"] > 0.3 and abs(means["external"]) < 0.2, form


def naive_distance(views):
    return np.mean([float(np.linalg.norm(a - b)) for a, b in combinations(views, 2)])


def test_distance_is_the_mean_over_all_pairs_of_views():
    views = vectors(4, 5, 8)
    assert scores.distance(views).tolist() == pytest.approx([naive_distance(views[:, n]) for n in range(5)], abs=1e-6)


def test_the_self_supervised_score_is_of_other_views(prepared):
    model, rows = made(prepared, "view"), prepared.subsets["pool"]
    images = torch.from_numpy(prepared.images[rows])
    views = torch.stack([image(model, other_view(images, seeded(a))) for a in range(3)])
    found = scores.measure(model, replace(TINY, objective="view"), prepared, 3, ["pool"])["distance_image"]
    assert (prepared.table.loc[rows, "corruption"] == "inverted").any()
    assert found.tolist() == pytest.approx([naive_distance(views[:, n]) for n in range(80)], abs=1e-5)


def selectivity(means):
    """The definition, of the mean activations of one unit."""
    largest, others = max(means), (sum(means) - max(means)) / (len(means) - 1)
    return (largest - others) / (largest + others) if largest + others > 0 else 0.0


def test_selectivity_by_hand():
    means = torch.rand(20, 7, generator=seeded(0)).double()
    means[:, 2], means[:, 3], means[:, 4] = 0, 0.5, torch.arange(20) == 11  # dead, alike for all, for one image only
    found = scores.selectivity(means.amax(dim=0), means.sum(dim=0), 20)
    assert found.tolist() == pytest.approx([selectivity(unit) for unit in means.T.tolist()], abs=1e-12)
    assert found[2:5].tolist() == [0, 0, 1] and ((found >= 0) & (found <= 1)).all()


def hooked(model, x):
    """Outputs of every GELU, [N, positions, units] for each layer, in open_clip's forward pass."""
    hidden, hooks = [], []
    for block in model.visual.transformer.resblocks:
        hooks.append(block.mlp.gelu.register_forward_hook(lambda m, i, out: hidden.append(out.detach())))
    image(model, x)
    for hook in hooks:
        hook.remove()
    return hidden


def test_unitmem_and_classmem_equal_naive_ones(prepared, model, monkeypatch):
    monkeypatch.setattr(lib.model, "BLOCK", 5)
    rows = np.sort(np.r_[prepared.subsets["pool"][:6], prepared.subsets["shared"][:3]])
    images = torch.from_numpy(prepared.images[rows]).split(5)  # each block draws its crops afresh
    crops = [[hooked(model, light_crop(part, seeded(a))) for a in range(3)] for part in images]
    found = scores.unit_scores(model, prepared, rows, 3)
    for layer in range(2):
        active = [np.mean([h[layer].clamp(min=0).mean(dim=1).numpy() for h in part], axis=0) for part in crops]
        means, targets = np.concatenate(active).astype(float), prepared.targets[rows]
        classes = np.array([targets[:, k] @ means / targets[:, k].sum() for k in np.flatnonzero(targets.any(axis=0))])
        own = found[found["layer"] == layer + 1]
        assert own["unit"].tolist() == list(range(256)) and own[["unitmem", "classmem"]].stack().between(0, 1).all()
        assert own["unitmem"].tolist() == pytest.approx([selectivity(unit) for unit in means.T], abs=1e-4)
        assert own["classmem"].tolist() == pytest.approx([selectivity(unit) for unit in classes.T], abs=1e-4)
    without_classes = replace(prepared, targets=prepared.targets[:, :0])
    assert scores.unit_scores(model, without_classes, rows, 1)["classmem"].isna().all()


def test_units_do_not_depend_on_the_blocks_where_the_crops_do_not(prepared, model, monkeypatch):
    plain = np.random.default_rng(0).integers(0, 256, (260, 3, 1, 1), np.uint8)  # each of one colour, however cropped
    plain = replace(prepared, images=np.ascontiguousarray(np.broadcast_to(plain, (260, 3, 32, 32))))
    rows = prepared.subsets["shared"]
    whole = scores.unit_scores(model, plain, rows, 2)
    assert whole[["unitmem", "classmem"]].std().min() > 0.01
    for size in (60, 7, 1):
        monkeypatch.setattr(lib.model, "BLOCK", size)
        pd.testing.assert_frame_equal(scores.unit_scores(model, plain, rows, 2), whole, atol=1e-4, rtol=0)


def test_memory_does_not_grow_with_the_number_of_images(prepared, model, monkeypatch):
    alive = []

    def watched(model, x):
        alive.append(sum(one.numel() for one in gc.get_objects() if type(one) is torch.Tensor))
        return image_layers(model, x)

    monkeypatch.setattr(lib.model, "BLOCK", 10)
    monkeypatch.setattr(scores, "image_layers", watched)
    scores.unit_scores(model, prepared, prepared.subsets["shared"], 1)
    assert len(alive) == 6 and alive[5] - alive[1] < 100  # the activations of a block are 5120 numbers


def naive_lemon(x, y, known, own, k):
    """The definition for one pair; `known`: (image, caption) of each known pair, `own` its place there, or -1."""

    def d(a, b):
        return 1 - float(a @ b)

    others = [pair for place, pair in enumerate(known) if place != own]
    by_image = sorted(others, key=lambda pair: d(x, pair[0]))[:k]
    by_text = sorted(others, key=lambda pair: d(y, pair[1]))[:k]
    s_n = sum(d(y, b) * math.exp(-0.1 * d(x, a)) * math.exp(-5 * d(a, b)) for a, b in by_image) / k
    s_m = sum(d(x, a) * math.exp(-0.1 * d(y, b)) * math.exp(-5 * d(a, b)) for a, b in by_text) / k
    return d(x, y) + 5 * s_n + 5 * s_m


def test_lemon_equals_its_definition():
    known_image, known_text = vectors(9, 4, seed=1), vectors(9, 4, seed=2)
    image, text, own = vectors(5, 4, seed=3), vectors(5, 4, seed=4), torch.tensor([-1, 7, -1, 0, -1])
    image[[1, 3]], text[[1, 3]] = known_image[[7, 0]], known_text[[7, 0]]
    image[4], text[4] = known_image[7], known_text[7]  # a copy of a known pair, which stays a neighbour
    known = list(zip(known_image, known_text, strict=True))
    for k in (1, 3, 8):
        found = scores.lemon(image, text, known_image, known_text, own, k)
        expected = [naive_lemon(image[n], text[n], known, int(own[n]), k) for n in range(5)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_wrong_caption_has_a_higher_score():
    kind = torch.arange(40) % 4
    image, text = (F.normalize(vectors(4, 8)[kind] + 0.2 * vectors(40, 8, seed=seed), dim=1) for seed in (1, 2))
    wrong = text.clone()
    wrong[0], wrong[1] = text[1], text[0]
    score = scores.lemon(image, wrong, image, wrong, torch.arange(40), k=5)
    assert score[:2].min() > score[2:].max() + 0.5


def test_both_scores_are_of_a_pairs_own_embeddings(prepared):
    model = train.fresh(replace(TINY, seed=2), prepared).eval()
    rows, known = prepared.half("candidate", 0)[::4], train.training_rows(TINY, prepared)
    rows = torch.cat([torch.from_numpy(rows), torch.from_numpy(prepared.subsets["external"][:3])]).numpy()

    def embed(some, view=None):
        images = torch.from_numpy(prepared.images[some])
        images = normalise(images) if view is None else light_crop(images, seeded(view))
        return model.encode_image(images, normalize=True).detach()

    def read(some):
        return model.encode_text(torch.from_numpy(prepared.tokens[some, 0]).long(), normalize=True).detach()

    found = scores.single_model(model, prepared, rows, known, views=3)
    image, text, pairs = embed(rows), read(rows), list(zip(embed(known), read(known), strict=True))
    assert found["pair_id"].tolist() == prepared.pair_ids[rows].tolist()
    cosines = [(embed(rows, view) * text).sum(dim=1) - (image * text).sum(dim=1) for view in range(3)]
    assert found["augmentation"].tolist() == pytest.approx(torch.stack(cosines).abs().mean(dim=0).tolist(), abs=1e-5)
    places = [known.tolist().index(row) if row in known else -1 for row in rows]
    assert min(places) == -1 and max(places) >= 60
    expected = [naive_lemon(image[n], text[n], pairs, places[n], 30) for n in range(len(rows))]
    assert found["lemon"].tolist() == pytest.approx(expected, abs=1e-3)


def test_where_a_few_pairs_are_regrouped_all_are_scored_by_the_caption_that_the_others_were_trained_on(prepared):
    plain = replace(TINY, n_captions=1)
    model = train.fresh(plain, prepared).eval()
    found = [scores.measure(model, r, prepared, 0) for r in (plain, replace(plain, n_captions=3, regrouped=0.1))]
    assert found[0].equals(found[1])
