"""LEMoN against a naive loop, both scores of real pairs against open_clip's embeddings, and a planted wrong caption."""

from dataclasses import replace
from math import exp

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from lib import baselines, train
from lib.model import light_crop, normalise


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def vectors(*shape, seed=0):
    return F.normalize(torch.randn(shape, generator=seeded(seed)), dim=-1)


def naive_lemon(x, y, known, own, k):
    """The definition for one pair; `known`: (image, caption) of each known pair, `own` its place there, or -1."""

    def d(a, b):
        return 1 - float(a @ b)

    others = [pair for place, pair in enumerate(known) if place != own]
    by_image = sorted(others, key=lambda pair: d(x, pair[0]))[:k]
    by_text = sorted(others, key=lambda pair: d(y, pair[1]))[:k]
    s_n = sum(d(y, b) * exp(-0.1 * d(x, a)) * exp(-5 * d(a, b)) for a, b in by_image) / k
    s_m = sum(d(x, a) * exp(-0.1 * d(y, b)) * exp(-5 * d(a, b)) for a, b in by_text) / k
    return d(x, y) + 5 * s_n + 5 * s_m


def test_lemon_equals_its_definition():
    known_image, known_text = vectors(9, 4, seed=1), vectors(9, 4, seed=2)
    image, text, own = vectors(5, 4, seed=3), vectors(5, 4, seed=4), torch.tensor([-1, 7, -1, 0, -1])
    image[[1, 3]], text[[1, 3]] = known_image[[7, 0]], known_text[[7, 0]]
    image[4], text[4] = known_image[7], known_text[7]  # a copy of a known pair, which stays a neighbour
    known = list(zip(known_image, known_text, strict=True))
    for k in (1, 3, 8):
        found = baselines.lemon(image, text, known_image, known_text, own, k)
        expected = [naive_lemon(image[n], text[n], known, int(own[n]), k) for n in range(5)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_wrong_caption_has_a_higher_score():
    kind = torch.arange(40) % 4
    image, text = (F.normalize(vectors(4, 8)[kind] + 0.2 * vectors(40, 8, seed=seed), dim=1) for seed in (1, 2))
    wrong = text.clone()
    wrong[0], wrong[1] = text[1], text[0]
    score = baselines.lemon(image, wrong, image, wrong, torch.arange(40), k=5)
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

    found = baselines.single_model(model, prepared, rows, known, views=3)
    image, text, pairs = embed(rows), read(rows), list(zip(embed(known), read(known), strict=True))
    assert found["pair_id"].tolist() == prepared.pair_ids[rows].tolist()
    cosines = [(embed(rows, view) * text).sum(dim=1) - (image * text).sum(dim=1) for view in range(3)]
    assert found["augmentation"].tolist() == pytest.approx(torch.stack(cosines).abs().mean(dim=0).tolist(), abs=1e-5)
    places = [known.tolist().index(row) if row in known else -1 for row in rows]
    assert min(places) == -1 and max(places) >= 60
    expected = [naive_lemon(image[n], text[n], pairs, places[n], 30) for n in range(len(rows))]
    assert found["lemon"].tolist() == pytest.approx(expected, abs=1e-3)
