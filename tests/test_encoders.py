"""The swap test: a rotation that changes nothing, towers that are equal, and the CLIPMem of two trained models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib import runs, scores
from lib.recipes import f_and_g
from lib.scores import rotation, swap, swap_parts

HELD, EXCHANGE = torch.tensor([5, 7, 8, 11]), torch.arange(12) % 2 == 1


def vectors(*shape, seed=0):
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_rotation_is_found_again_and_is_one():
    source, turn = vectors(30, 6), torch.linalg.qr(vectors(6, 6, seed=1))[0]
    assert torch.allclose(rotation(source, source @ turn), turn, atol=1e-5)
    found = rotation(source, vectors(30, 6, seed=2))
    assert torch.allclose(found @ found.T, torch.eye(6), atol=1e-5)


def test_no_number_depends_on_the_axes_of_either_model():
    f, g, shared = vectors(2, 12, 6), vectors(2, 12, 6, seed=1), vectors(2, 30, 6, seed=2)
    turns, found = [torch.linalg.qr(vectors(6, 6, seed=seed))[0] for seed in (3, 4)], []
    for by_f, by_g in ([torch.eye(6)] * 2, turns):
        found.append(swap(f @ by_f @ rotation(shared[0] @ by_f, shared[1] @ by_g), g @ by_g, HELD, EXCHANGE))
    for name, values in found[0].items():
        assert torch.allclose(values, found[1][name], atol=1e-5, equal_nan=True)


def naive_alignment(image, text, n):
    """The form `contrast` for pair n, of all images as one model sees them and all captions as another reads them."""
    others = [m for m in HELD.tolist() if m != n]
    to_captions, to_images = ([float(image[n] @ text[m]) for m in others], [float(image[m] @ text[n]) for m in others])
    return float(image[n] @ text[n]) - np.mean(to_captions) - np.mean(to_images)


def test_the_parts_equal_their_definitions():
    f, g = vectors(2, 12, 6), vectors(2, 12, 6, seed=1)
    found = swap(f, g, HELD, EXCHANGE)
    for n in range(12):
        saw, other = (g, f) if n % 2 else (f, g)
        before = naive_alignment(*other, n)
        for name, images, texts in (("clipmem", saw, saw), ("text_part", other, saw), ("image_part", saw, other)):
            assert float(found[name][n]) == pytest.approx(naive_alignment(images[0], texts[1], n) - before, abs=1e-5)
        for name, pairs in (("pure", ((f, f), (g, g))), ("mixed", ((f, g), (g, f)))):
            cosine = np.mean([float(a[0, n] @ b[1, n]) for a, b in pairs]) if n in HELD else np.nan
            assert float(found[name][n]) == pytest.approx(cosine, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(("tower", "other", "place"), [("text_part", "image_part", 1), ("image_part", "text_part", 0)])
def test_a_tower_that_is_equal_in_both_models_brings_nothing(tower, other, place):
    f, g = vectors(2, 12, 6), vectors(2, 12, 6, seed=1)
    f[place] = g[place]
    found = swap(f, g, HELD, EXCHANGE)
    assert found[tower].abs().max() < 1e-6 and torch.allclose(found[other], found["clipmem"], atol=1e-6)


def test_clipmem_is_that_of_the_scores_and_a_model_swapped_with_itself_has_none(data, trained):
    both = f_and_g(trained, 0)
    f, g = map(runs.load, both)
    found = swap_parts(f, g, data, 0)
    in_f, in_g = (scores.measure(m, r, data, views=0) for m, r in zip((f, g), both, strict=True))
    table = scores.memorization(scores.in_out(in_f, in_g, data, 0))
    assert found[["pair_id", "subset"]].equals(table[["pair_id", "subset"]]) and table["clipmem"].abs().max() > 0.01
    assert found["clipmem"].tolist() == pytest.approx(table["clipmem"].tolist(), abs=1e-5)
    clean = found["pair_id"].isin(data.pair_ids[scores.held_out(data)])
    assert found["pure"].notna().equals(clean) and found["mixed"].notna().equals(clean)
    cosine = (in_f["similarity"] + in_g["similarity"])[clean] / 2
    assert found["pure"][clean].tolist() == pytest.approx(cosine.tolist(), abs=1e-5)
    assert swap_parts(f, f, data, 0)[["clipmem", "text_part", "image_part"]].abs().max().max() < 1e-3
