"""Every vectorised score against a naive one, and planted memorization found."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import lib.embeddings
from lib import memorization, models
from lib.embeddings import of_images, of_texts


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def embeddings():
    image, text, held_image, held_text = (
        unit(4, 6, 8, seed=0),
        unit(6, 8, seed=1),
        unit(5, 8, seed=2),
        unit(5, 8, seed=3),
    )
    own = torch.tensor([-1, -1, -1, 0, 4, 2])
    held_text[0], held_text[4], held_text[2] = text[3], text[4], text[5]
    return image, text, held_image, held_text, own


def naive_alignment(image, text, held_image, held_text, own, i):
    """The definition, one cosine at a time."""
    plain, contrast = [], []
    for view in image:
        same = float(view[i] @ text[i])
        others = [m for m in range(len(held_text)) if m != own[i]]
        captions = [float(view[i] @ held_text[m]) for m in others]
        images = [float(held_image[m] @ text[i]) for m in others]
        plain.append(same)
        contrast.append(same - sum(captions) / len(captions) - sum(images) / len(images))
    return sum(plain) / len(plain), sum(contrast) / len(contrast)


def test_alignment_equals_the_definition(embeddings):
    plain, contrast = memorization.align(*embeddings)
    naive = [naive_alignment(*embeddings, i) for i in range(6)]
    np.testing.assert_allclose(plain, [p for p, _ in naive], atol=1e-6)
    np.testing.assert_allclose(contrast, [c for _, c in naive], atol=1e-6)


def test_pair_loss_equals_the_definition(embeddings):
    image, text, held_image, held_text, own = embeddings
    ours = memorization.pair_loss(image[0], text, held_image, held_text, own, scale=7.0)
    for i in range(6):
        others = [m for m in range(5) if m != own[i]]
        same = math.exp(7 * image[0, i] @ text[i])
        by_image = same + sum(math.exp(7 * image[0, i] @ held_text[m]) for m in others)
        by_text = same + sum(math.exp(7 * text[i] @ held_image[m]) for m in others)
        assert float(ours[i]) == pytest.approx(-(math.log(same / by_image) + math.log(same / by_text)) / 2, abs=1e-5)


def test_clipmem_is_the_difference_in_either_form_and_refuses_other_pairs():
    f = pd.DataFrame({"pair_id": [3, 5], "plain": [0.9, 0.8], "contrast": [0.5, 0.2]})
    g = pd.DataFrame({"pair_id": [3, 5], "plain": [0.1, 0.6], "contrast": [0.1, 0.3]})
    np.testing.assert_allclose(memorization.clipmem(f, g), [0.4, -0.1])
    np.testing.assert_allclose(memorization.clipmem(f, g, "plain"), [0.8, 0.2])
    with pytest.raises(ValueError, match="expected 'contrast' or 'plain'"):
        memorization.clipmem(f, g, "plane")
    with pytest.raises(ValueError, match="different pairs"):
        memorization.clipmem(f, g.assign(pair_id=[3, 6]))


def test_range_normalisation_takes_its_range_from_the_candidates():
    raw = pd.Series([0.2, 0.6, 5.0])
    np.testing.assert_allclose(memorization.range_normalised(raw, pd.Series([True, True, False])), [0.5, 1.5, 12.5])


def test_scored_rows_cover_four_subsets_and_never_the_disjoint_pairs(prepared):
    rows = memorization.scored_rows(prepared)
    assert list(rows) == ["shared", "candidate", "independent", "external"]
    assert len(rows["shared"]) == len(rows["candidate"])
    assert set(rows["shared"]) <= set(prepared.subsets["shared"])
    every = np.concatenate(list(rows.values()))
    assert len(set(every)) == len(every) and not set(every) & set(prepared.subsets["disjoint"])


def test_views_are_the_same_for_every_model_and_chunking_changes_nothing(prepared, monkeypatch):
    model = models.build("smoke", 32, len(prepared.token_ids), prepared.tokens.shape[2], 0).eval()
    rows = prepared.subsets["candidate"]
    image, text = of_images(model, prepared.pictures, rows), of_texts(model, prepared, rows)
    again = of_images(model, prepared.pictures, rows, 2)
    torch.testing.assert_close(again, of_images(model, prepared.pictures, rows, 2))
    assert again.shape == (2, len(rows), 64) and not torch.allclose(again[0], again[1])
    monkeypatch.setattr(lib.embeddings, "CHUNK", 7)
    torch.testing.assert_close(of_images(model, prepared.pictures, rows), image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of_texts(model, prepared, rows), text, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "columns"),
    [
        ("caption", {"plain", "contrast", "similarity", "loss"}),
        ("label", {"probability"}),
        ("view", {"distance_image"}),
    ],
)
def test_what_is_measured_follows_the_objective(prepared, objective, columns):
    classes = len(prepared.class_names) if objective == "label" else 0
    size = len(prepared.token_ids), prepared.tokens.shape[2]
    model = models.build("smoke", 32, *size, 0, classes=classes).eval()
    rows = memorization.scored_rows(prepared)
    for augmentations in (0, 2):
        table = memorization.measure(model, objective, prepared, augmentations)
        assert set(table) == {"pair_id", "subset"} | columns and table.notna().all().all()
        assert table.groupby("subset").size().to_dict() == {name: len(own) for name, own in rows.items()}
        assert table["pair_id"].tolist() == prepared.pairs.pair_ids[np.concatenate(list(rows.values()))].tolist()


def test_what_a_pair_gets_does_not_depend_on_which_subsets_are_asked_for(prepared):
    model = models.build("smoke", 32, len(prepared.token_ids), prepared.tokens.shape[2], 0).eval()
    whole = memorization.measure(model, "caption", prepared, 2)
    part = memorization.measure(model, "caption", prepared, 2, ["candidate", "external"])
    expected = whole[whole["subset"].isin(["candidate", "external"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, expected)


def test_probability_is_what_the_model_gives_the_pairs_own_classes(prepared):
    classes = len(prepared.class_names)
    model = models.build("smoke", 32, len(prepared.token_ids), prepared.tokens.shape[2], 0, classes=classes).eval()
    targets = prepared.targets.copy()
    targets[prepared.subsets["candidate"][0]] = [0.5, 0.5, *[0] * (classes - 2)]  # of two classes
    targets[prepared.subsets["candidate"][1]] = 0  # of none
    several = replace(prepared, targets=targets)
    found = memorization.measure(model, "label", several, 2).set_index("pair_id")["probability"]
    table = model.classes.detach() / model.classes.detach().norm(dim=1, keepdim=True)
    rows = prepared.subsets["candidate"]
    views = of_images(model, prepared.pictures, rows, 2)
    for place, row in enumerate(rows):
        chances = [np.exp(float(model.logit_scale.detach().exp()) * (table @ view[place]).numpy()) for view in views]
        own = [c[targets[row] > 0].sum() / c.sum() for c in chances]
        assert found[prepared.pairs.pair_ids[row]] == pytest.approx(np.mean(own), abs=1e-5)
