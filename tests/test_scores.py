"""Every score against a naive one, units that were made selective by hand, and the swap of two models' encoders."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, seeded

import lib.model
from lib import runs, scores, train
from lib.model import light_crop, normalise, other_view
from lib.recipes import f_and_g

OF_CAPTIONS = {"contrast", "similarity", "loss"}
COLUMNS = {"CLIP": OF_CAPTIONS, "SigLIP": OF_CAPTIONS}
COLUMNS |= {"supervised": {"probability"}, "self-supervised": {"distance_image"}}


def vectors(*shape, seed=0):
    return F.normalize(torch.randn(shape, generator=seeded(seed)), dim=-1)


def made(data, objective="CLIP"):
    return train.fresh(replace(TINY, seed=2, objective=objective), data).eval()


def image(model, x):
    """open_clip's own embeddings of normalised images."""
    return model.encode_image(x, normalize=True).detach()


def text(model, data, rows, caption=0):
    return model.encode_text(torch.from_numpy(data.tokens[rows, caption]).long(), normalize=True).detach()


def naive_alignment(views, own_text, held_image, held_text, own):
    """The definition for one pair, one cosine at a time; `own`: its place among the held-out pairs, or -1."""
    others = [m for m in range(len(held_text)) if m != own]
    cosine = np.mean([float(view @ own_text) for view in views])
    to_captions = np.mean([float(view @ held_text[m]) for view in views for m in others])
    to_images = np.mean([float(held_image[m] @ own_text) for m in others])
    return cosine - to_captions - to_images


@pytest.mark.parametrize(("count", "held", "own"), [(4, 5, [-1, -1, -1, 0, 4, 2]), (1, 2, [1]), (1, 3, [-1])])
def test_alignment_and_loss_equal_their_definitions(count, held, own):
    own, texts = torch.tensor(own), vectors(len(own), 8)
    views, held_image, held_text = vectors(count, len(own), 8), vectors(held, 8, seed=1), vectors(held, 8, seed=2)
    held_text[own[own >= 0]] = texts[own >= 0]
    found = scores.align(views, texts, held_image, held_text, own)
    loss = scores.pair_loss(views[0], texts, held_image, held_text, own, scale=7.0)
    for i in range(len(own)):
        expected = naive_alignment(views[:, i], texts[i], held_image, held_text, own[i])
        assert float(found[i]) == pytest.approx(expected, abs=1e-6)
        same, others = math.exp(7 * views[0, i] @ texts[i]), [m for m in range(held) if m != own[i]]
        both = (views[0, i], held_text), (texts[i], held_image)
        sums = [sum(math.exp(7 * a @ held[m]) for m in others) for a, held in both]
        assert float(loss[i]) == pytest.approx(np.mean([-math.log(same / (same + x)) for x in sums]), abs=1e-5)


@pytest.mark.parametrize("captions", [1, 3])
def test_scores_are_of_the_trained_captions_among_the_clean_external_pairs(data, captions):
    model, external = made(data), data.subsets["external"]
    found = scores.measure(model, replace(TINY, n_captions=captions), data, views=2).set_index("pair_id")
    clean = external[(data.table.loc[external, "corruption"] == "clean").to_numpy()]
    assert scores.held_out(data).tolist() == clean.tolist() and 0 < len(clean) < len(external)
    held = image(model, normalise(torch.from_numpy(data.images[clean]))), text(model, data, clean)
    for subset, row in (("pool", data.subsets["pool"][3]), ("external", clean[5])):
        rows = data.subsets[subset]
        place, images = rows.tolist().index(row), torch.from_numpy(data.images[rows])
        views = [image(model, light_crop(images, seeded(a)))[place] for a in range(2)]
        own, plain_image = (5 if subset == "external" else -1), image(model, normalise(images))[place]
        texts = [text(model, data, rows, c)[place] for c in range(captions)]
        expected = np.mean([naive_alignment(views, one, *held, own) for one in texts])
        measured = found.loc[data.pair_ids[row]]
        assert measured["contrast"] == pytest.approx(expected, abs=1e-5)
        assert measured["similarity"] == pytest.approx(np.mean([float(plain_image @ one) for one in texts]), abs=1e-5)


def test_scores_by_caption_are_of_images_as_they_are_and_missing_where_there_are_fewer_captions(data):
    rows, held = np.concatenate([data.subsets["pool"], data.subsets["external"]]), scores.held_out(data)
    model, pictures, captions = made(data), torch.from_numpy(data.images), [*data.captions]
    captions[rows[3]] = captions[rows[3]][:2]  # of five
    found = scores.by_caption(model, replace(data, captions=captions))
    seen, held_image = (image(model, normalise(pictures[some])) for some in (rows, held))
    texts = [text(model, data, rows, caption) for caption in range(5)]
    for place, caption, own in ((3, 1, -1), (5, 4, -1), (rows.tolist().index(held[5]), 2, 5)):
        asked = seen[place][None], texts[caption][place], held_image, text(model, data, held), own
        assert found[f"contrast_{caption}"][place] == pytest.approx(naive_alignment(*asked), abs=1e-5)
    assert found.isna().to_numpy().sum() == 3 and found.loc[3, ["contrast_2", "contrast_3", "contrast_4"]].isna().all()
    assert found["distance_text"][3] == pytest.approx(np.linalg.norm(texts[0][3] - texts[1][3]), abs=1e-5)
    views = [image(model, other_view(pictures[rows], seeded(view))) for view in range(5)]
    for name, own in (("distance_text", texts), ("distance_image", views)):
        apart = np.mean([np.linalg.norm(a - b, axis=1) for a, b in combinations(own, 2)], axis=0)
        assert found[name].drop(3).tolist() == pytest.approx(np.delete(apart, 3).tolist(), abs=1e-5)


@pytest.mark.parametrize("objective", COLUMNS)
def test_columns_follow_the_objective_and_no_number_depends_on_the_subsets_asked_for(data, objective):
    model, recipe, subsets = made(data, objective), replace(TINY, objective=objective), ("shared", "pool", "external")
    for views in (0, 2):
        whole = scores.measure(model, recipe, data, views, subsets)
        assert set(whole) == {"pair_id", "subset"} | COLUMNS[objective] and whole.notna().all().all()
        assert whole.groupby("subset").size().to_dict() == {"shared": 60, "pool": 80, "external": 40}
        assert (data.table.set_index("pair_id").loc[whole["pair_id"], "subset"].to_numpy() == whole["subset"]).all()
        part = scores.measure(model, recipe, data, views, ["external"])
        pd.testing.assert_frame_equal(part, whole[whole["subset"] == "external"].reset_index(drop=True))


def test_probability_is_of_all_the_classes_of_a_pair(data):
    model, rows, targets = made(data, "supervised"), data.subsets["pool"], data.targets.copy()
    targets[rows[0], :2], targets[rows[1]] = 0.5, 0
    asked = replace(TINY, objective="supervised"), replace(data, targets=targets), 2, ["pool"]
    found = scores.measure(model, *asked)["probability"]
    table, scale = F.normalize(model.classes.detach(), dim=1), float(model.logit_scale.detach().exp())
    views = [image(model, light_crop(torch.from_numpy(data.images[rows]), seeded(a))) for a in range(2)]
    odds = [np.exp(scale * x @ table.T) for x in views]
    chances = np.mean([x / x.sum(axis=1, keepdims=True) for x in odds], axis=0)
    assert found.tolist() == pytest.approx((chances * (targets[rows] > 0)).sum(axis=1).tolist(), abs=1e-5)


def test_the_self_supervised_score_is_the_mean_distance_of_other_views(data):
    model, images = made(data, "self-supervised"), torch.from_numpy(data.images[data.subsets["pool"]])
    views = [image(model, other_view(images, seeded(a))) for a in range(3)]
    found = scores.measure(model, replace(TINY, objective="self-supervised"), data, 3, ["pool"])["distance_image"]
    expected = np.mean([np.linalg.norm(a - b, axis=1) for a, b in combinations(views, 2)], axis=0)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_in_is_the_model_that_was_trained_on_the_pair(data):
    ids = data.pair_ids[np.concatenate([data.subsets["pool"], data.subsets["external"]])]
    f, g = (pd.DataFrame({"pair_id": ids, "loss": np.arange(120) + start}) for start in (0.0, 1000.0))
    found = scores.in_out(f, g, data, seed=3).set_index("pair_id")
    for name, sign in (("candidate", 1), ("independent", -1)):
        own = found.loc[data.pair_ids[data.half(name, 3)]]
        assert (own["member"] == sign).all() and (own["loss_in"] - own["loss_out"] == -1000 * sign).all()
    external = found.loc[data.pair_ids[data.subsets["external"]]]
    assert (external["member"] == 0).all() and (external["loss_in"] < 1000).all()
    with pytest.raises(ValueError, match="f and g are of different pairs"):
        scores.in_out(f, g.iloc[::-1].reset_index(drop=True), data, 3)


def test_memorization_is_what_changes_for_the_pair_in_the_direction_of_its_score():
    table = pd.DataFrame({"pair_id": [1, 2, 3], "subset": ["pool", "pool", "external"]})
    signs = {"clipmem": ("contrast", 1), "labelmem": ("probability", 1), "sslmem": ("distance_image", -1)}
    for name, (score, sign) in signs.items():
        found = scores.memorization(table.assign(**{f"{score}_in": [0.5, 0.1, 0.9], f"{score}_out": 0.1}))
        assert found[name].tolist() == pytest.approx([0.4 * sign, 0, 0.8 * sign])


@pytest.mark.parametrize("rule", ["clipmem", "held-out similarity", "early loss"])
def test_removal_takes_what_f_and_g_of_another_seed_find_most_suspicious(data, rule):
    ids, saw_first = data.pair_ids[data.subsets["pool"]], data.pair_ids[data.half("candidate", 1)]
    keys = pd.DataFrame({"epoch": np.repeat([1, 2], 80), "pair_id": np.tile(ids, 2), "subset": "pool"})
    names, rng = ["contrast", "similarity", "loss"], np.random.default_rng(0)
    f, g = (keys.join(pd.DataFrame(rng.random((160, 3)), columns=names)) for _ in range(2))
    saw, did_not = (one.where(keys["pair_id"].isin(saw_first), other) for one, other in ((f, g), (g, f)))
    score = {"clipmem": (saw["contrast"] - did_not["contrast"])[80:], "early loss": saw["loss"][:80]}
    score = score.get(rule, -did_not["similarity"][80:])
    recipe = replace(TINY, remove=0.5, remove_by=rule, trained_on=("candidate",))  # as in the removal study
    own = pd.Series(score.to_numpy(), ids)[data.pair_ids[data.training_rows(recipe)]].sort_values(ascending=False)
    assert data.pair_ids[scores.rows_to_remove(recipe, data, [f, g])].tolist() == own.index[:20].tolist()


def test_removal_by_the_truth_takes_the_swapped_pairs_first_and_by_chance_any(data):
    for share, wrong in ((0.1, 8), (0.05, 5)):  # of 100 pairs; 8 of the 40 candidates are swapped
        gone = scores.rows_to_remove(replace(TINY, remove=share, remove_by="oracle"), data, [])
        assert len(gone) == round(100 * share) and (data.table.loc[gone, "corruption"] == "swapped").sum() == wrong
    chance = replace(TINY, remove=0.1, remove_by="random")
    first, again, other = (scores.rows_to_remove(replace(chance, seed=seed), data, []) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def selectivity(means):
    """The definition, of the mean activations of one unit."""
    largest, others = max(means), (sum(means) - max(means)) / (len(means) - 1)
    return (largest - others) / (largest + others) if largest + others > 0 else 0.0


def test_selectivity_by_hand():
    means = torch.rand(20, 5, generator=seeded(0)).double()
    means[:, 2], means[:, 3], means[:, 4] = 0, 0.5, torch.arange(20) == 11  # dead, alike for all, for one image only
    found = scores.selectivity(means.amax(dim=0), means.sum(dim=0), 20).tolist()
    assert found == pytest.approx([selectivity(unit) for unit in means.T.tolist()]) and found[2:] == [0, 0, 1]


def hooked(model, x):
    """Outputs of every GELU, [N, positions, units] for each layer, in open_clip's forward pass."""
    hidden, gelus = [], [block.mlp.gelu for block in model.visual.transformer.resblocks]
    hooks = [gelu.register_forward_hook(lambda m, i, out: hidden.append(out.detach())) for gelu in gelus]
    image(model, x)
    for hook in hooks:
        hook.remove()
    return hidden


def test_unitmem_equals_a_naive_one(data, monkeypatch):
    monkeypatch.setattr(lib.model, "BLOCK", 5)
    model, rows = made(data), np.sort(np.r_[data.subsets["pool"][:6], data.subsets["shared"][:3]])
    images = torch.from_numpy(data.images[rows]).split(5)  # each block draws its crops afresh
    crops = [[hooked(model, light_crop(part, seeded(a))) for a in range(3)] for part in images]
    found = scores.unit_scores(model, data, rows, 3)
    for layer in range(2):
        active = [np.mean([h[layer].clamp(min=0).mean(dim=1).numpy() for h in part], axis=0) for part in crops]
        means, own = np.concatenate(active).astype(float), found[found["layer"] == layer + 1]
        assert own["unit"].tolist() == list(range(256)) and own["unitmem"].between(0, 1).all()
        assert own["unitmem"].tolist() == pytest.approx([selectivity(unit) for unit in means.T], abs=1e-4)
        by_median = [selectivity([max(unit), sorted(unit)[4]]) for unit in means.T]  # the fifth of nine
        assert own["unitmem_median"].tolist() == pytest.approx(by_median, abs=1e-4)


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
    x, y, own = vectors(5, 4, seed=3), vectors(5, 4, seed=4), torch.tensor([-1, 7, -1, 0, -1])
    x[[1, 3]], y[[1, 3]] = known_image[[7, 0]], known_text[[7, 0]]
    x[4], y[4] = known_image[7], known_text[7]  # a copy of a known pair, which stays a neighbour
    known = list(zip(known_image, known_text, strict=True))
    for k in (1, 3, 8):
        expected = [naive_lemon(x[n], y[n], known, int(own[n]), k) for n in range(5)]
        assert scores.lemon(x, y, known_image, known_text, own, k).tolist() == pytest.approx(expected, abs=1e-5)


def test_both_baselines_are_of_a_pairs_own_embeddings(data):
    model, known, images = made(data), data.training_rows(TINY), torch.from_numpy(data.images)
    rows = np.r_[data.half("candidate", 0)[::4], data.subsets["external"][:3]]
    found = scores.single_model(model, data, rows, known, views=3)
    assert found["pair_id"].tolist() == data.pair_ids[rows].tolist()
    (x, y), others = ((image(model, normalise(images[some])), text(model, data, some)) for some in (rows, known))
    crops = [image(model, light_crop(images[rows], seeded(view))) for view in range(3)]
    changes = torch.stack([(crop * y).sum(dim=1) - (x * y).sum(dim=1) for crop in crops])
    assert found["augmentation"].tolist() == pytest.approx(changes.abs().mean(dim=0).tolist(), abs=1e-5)
    places = [known.tolist().index(row) if row in known else -1 for row in rows]
    assert min(places) == -1 and max(places) >= 60
    pairs = list(zip(*others, strict=True))
    expected = [naive_lemon(x[n], y[n], pairs, places[n], 30) for n in range(len(rows))]
    assert found["lemon"].tolist() == pytest.approx(expected, abs=1e-3)


# --- the swap test ---

HELD, EXCHANGE = torch.tensor([5, 7, 8, 11]), torch.arange(12) % 2 == 1


def test_the_rotation_is_found_again_and_is_one():
    source, turn = vectors(30, 6), torch.linalg.qr(vectors(6, 6, seed=1))[0]
    assert torch.allclose(scores.rotation(source, source @ turn), turn, atol=1e-5)
    found = scores.rotation(source, vectors(30, 6, seed=2))
    assert torch.allclose(found @ found.T, torch.eye(6), atol=1e-5)


def test_no_number_depends_on_the_axes_of_either_model():
    f, g, shared = vectors(2, 12, 6), vectors(2, 12, 6, seed=1), vectors(2, 30, 6, seed=2)
    turns, found = [torch.linalg.qr(vectors(6, 6, seed=seed))[0] for seed in (3, 4)], []
    for by_f, by_g in ([torch.eye(6)] * 2, turns):
        onto_g = scores.rotation(shared[0] @ by_f, shared[1] @ by_g)
        found.append(scores.swap(f @ by_f @ onto_g, g @ by_g, HELD, EXCHANGE))
    for name, values in found[0].items():
        assert torch.allclose(values, found[1][name], atol=1e-5, equal_nan=True)


def test_the_parts_equal_their_definitions():
    f, g = vectors(2, 12, 6), vectors(2, 12, 6, seed=1)
    found = scores.swap(f, g, HELD, EXCHANGE)

    def contrast(image, text, n):
        own = HELD.tolist().index(n) if n in HELD else -1
        return naive_alignment(image[None, n], text[n], image[HELD], text[HELD], own)

    for n in range(12):
        saw, other = (g, f) if n % 2 else (f, g)
        before = contrast(*other, n)
        for name, images, texts in (("clipmem", saw, saw), ("text_part", other, saw), ("image_part", saw, other)):
            assert float(found[name][n]) == pytest.approx(contrast(images[0], texts[1], n) - before, abs=1e-5)
        for name, pairs in (("pure", ((f, f), (g, g))), ("mixed", ((f, g), (g, f)))):
            cosine = np.mean([float(a[0, n] @ b[1, n]) for a, b in pairs]) if n in HELD else np.nan
            assert float(found[name][n]) == pytest.approx(cosine, abs=1e-5, nan_ok=True)


def test_clipmem_is_that_of_the_scores_and_a_model_swapped_with_itself_has_none(data, trained):
    both = f_and_g(trained, 0)
    f, g = map(runs.load, both)
    found = scores.swap_parts(f, g, data, 0)
    in_f, in_g = (scores.measure(m, r, data, views=0) for m, r in zip((f, g), both, strict=True))
    table = scores.memorization(scores.in_out(in_f, in_g, data, 0))
    assert found[["pair_id", "subset"]].equals(table[["pair_id", "subset"]]) and table["clipmem"].abs().max() > 0.01
    assert found["clipmem"].tolist() == pytest.approx(table["clipmem"].tolist(), abs=1e-5)
    clean = found["pair_id"].isin(data.pair_ids[scores.held_out(data)])
    assert found["pure"].notna().equals(clean) and found["mixed"].notna().equals(clean)
    cosine = (in_f["similarity"] + in_g["similarity"])[clean] / 2
    assert found["pure"][clean].tolist() == pytest.approx(cosine.tolist(), abs=1e-5)
    assert scores.swap_parts(f, f, data, 0)[["clipmem", "text_part", "image_part"]].abs().max().max() < 1e-3
