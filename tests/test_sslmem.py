"""L of SSLMem against a naive loop, on encoders that move nothing, and by the strength of the crop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib import models, objectives, sslmem
from lib.embeddings import of_images
from lib.objectives import other_view


@pytest.fixture
def model(prepared):
    return models.build("smoke", 32, len(prepared.token_ids), prepared.tokens.shape[2], seed=2).eval()


def test_distance_equals_the_mean_over_all_pairs_of_views():
    views = F.normalize(torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    ours = sslmem.distance(views)
    for n in range(5):
        found = [float(np.linalg.norm(views[a, n] - views[b, n])) for a in range(4) for b in range(4) if a != b]
        assert float(ours[n]) == pytest.approx(np.mean(found), abs=1e-6)
    assert torch.equal(sslmem.distance(views[:2]), (views[0] - views[1]).norm(dim=1))


def test_one_view_has_no_distance():
    assert sslmem.distance(torch.ones(1, 3, 4)).isnan().tolist() == [True] * 3


def test_an_encoder_that_maps_everything_to_one_point_moves_nothing(prepared, model):
    rows = prepared.subsets["candidate"][:8]
    assert sslmem.distance(of_images(model, prepared.pictures, rows, 3, other_view)).min() > 1e-3
    assert sslmem.distance(sslmem.caption_views(model, prepared, rows)).max() > 1e-3
    with torch.no_grad():
        model.visual.conv1.weight.zero_()
        model.token_embedding.weight.copy_(model.token_embedding.weight[:1].clone())
        model.positional_embedding.zero_()
    image = of_images(model, prepared.pictures, rows, 3, other_view)
    assert (image.norm(dim=-1) > 0.99).all() and sslmem.distance(image).max() < 1e-5
    assert sslmem.distance(sslmem.caption_views(model, prepared, rows)).max() < 1e-5


def test_the_same_caption_five_times_moves_nothing(prepared, model):
    rows = prepared.subsets["candidate"][:8]
    alike = replace(prepared, tokens=np.repeat(prepared.tokens[:, :1], 5, axis=1))
    assert sslmem.distance(sslmem.caption_views(model, alike, rows)).max() < 1e-5


def test_views_are_open_clips_embeddings_of_augmented_pictures_and_of_captions(prepared, model):
    rows = np.concatenate([prepared.subsets["candidate"][:6], np.flatnonzero(prepared.odd)[:2]])
    pictures = torch.from_numpy(prepared.pairs.images[rows].copy())
    pictures[6:] = 255 - pictures[6:]
    for a, ours in enumerate(of_images(model, prepared.pictures, rows, 2, other_view)):
        x = objectives.other_view(pictures, torch.Generator().manual_seed(a))
        torch.testing.assert_close(ours, model.encode_image(x, normalize=True).detach(), atol=1e-5, rtol=1e-4)
    for c, ours in enumerate(sslmem.caption_views(model, prepared, rows)):
        tokens = torch.from_numpy(prepared.tokens[rows, c]).long()
        theirs = model.encode_text(tokens, normalize=True).detach()
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_table_of_both_encoders(prepared, model):
    rows = prepared.subsets["external"]
    both = sslmem.by_encoder(model, prepared, rows)
    assert both["pair_id"].tolist() == prepared.pairs.pair_ids[rows].tolist()
    np.testing.assert_array_equal(both["text"], sslmem.distance(sslmem.caption_views(model, prepared, rows)))
    views = of_images(model, prepared.pictures, rows, sslmem.VIEWS, other_view)
    np.testing.assert_array_equal(both["image"], sslmem.distance(views))


def test_stronger_augmentations_move_the_image_encoder_further(prepared, model):
    rows = prepared.subsets["external"]
    table = sslmem.by_strength(model, prepared, rows)
    columns = [f"image_{i}" for i in range(len(sslmem.STRENGTHS))]
    assert list(table) == ["pair_id", "text", *columns] and len(table) == len(rows)
    moved = table[columns].mean()
    assert moved.is_monotonic_increasing and moved.iloc[-1] > 1.5 * moved.iloc[0]
    np.testing.assert_allclose(table["text"], sslmem.distance(sslmem.caption_views(model, prepared, rows)), atol=1e-6)
