"""The swap test: a rotation that changes nothing, towers that are equal, and the CLIPMem of two trained models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib import runs, scores
from lib.encoders import by_caption, rotation, swap, swap_parts
from lib.model import normalise
from lib.recipes import f_and_g

HELD, EXCHANGE = torch.tensor([5, 7, 8, 11]), torch.arange(12) % 2 == 1


def vectors(*shape, seed=0):
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def orthogonal(size, seed):
    return torch.linalg.qr(vectors(size, size, seed=seed))[0]


def test_the_rotation_is_found_again_and_is_one():
    source, turn = vectors(30, 6), orthogonal(6, seed=1)
    assert torch.allclose(rotation(source, source @ turn), turn, atol=1e-5)
    found = rotation(source, vectors(30, 6, seed=2))
    assert torch.allclose(found @ found.T, torch.eye(6), atol=1e-5)


def test_no_number_depends_on_the_axes_of_either_model():
    f, g, shared = vectors(2, 12, 6), vectors(2, 12, 6, seed=1), vectors(2, 30, 6, seed=2)

    def found(by_f, by_g):
        return swap(f @ by_f @ rotation(shared[0] @ by_f, shared[1] @ by_g), g @ by_g, HELD, EXCHANGE)

    plain, turned = found(torch.eye(6), torch.eye(6)), found(orthogonal(6, seed=3), orthogonal(6, seed=4))
    for name, values in plain.items():
        assert torch.allclose(values, turned[name], atol=1e-5, equal_nan=True)


def test_the_parts_equal_their_definitions():
    f, g = vectors(2, 12, 6), vectors(2, 12, 6, seed=1)
    found = swap(f, g, HELD, EXCHANGE)
    for n in range(12):
        inside, outside = (g, f) if n % 2 else (f, g)
        others = [m for m in HELD.tolist() if m != n]

        def alignment(a, b, n=n, others=others):
            captions, images = ([float(a[0, n] @ b[1, m]) for m in others], [float(a[0, m] @ b[1, n]) for m in others])
            return float(a[0, n] @ b[1, n]) - np.mean(captions) - np.mean(images)

        before = alignment(outside, outside)
        assert float(found["clipmem"][n]) == pytest.approx(alignment(inside, inside) - before, abs=1e-5)
        assert float(found["text_part"][n]) == pytest.approx(alignment(outside, inside) - before, abs=1e-5)
        assert float(found["image_part"][n]) == pytest.approx(alignment(inside, outside) - before, abs=1e-5)
        for name, pairs in (("pure", ((f, f), (g, g))), ("mixed", ((f, g), (g, f)))):
            cosine = np.mean([float(a[0, n] @ b[1, n]) for a, b in pairs]) if n in HELD else np.nan
            assert float(found[name][n]) == pytest.approx(cosine, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(("tower", "other", "place"), [("text_part", "image_part", 1), ("image_part", "text_part", 0)])
def test_a_tower_that_is_equal_in_both_models_brings_nothing(tower, other, place):
    f, g = vectors(2, 12, 6), vectors(2, 12, 6, seed=1)
    f[place] = g[place]
    found = swap(f, g, HELD, EXCHANGE)
    assert found[tower].abs().max() < 1e-6 and torch.allclose(found[other], found["clipmem"], atol=1e-6)


def test_clipmem_is_that_of_the_scores_and_a_model_has_no_memory_beyond_itself(prepared, trained):
    both = f_and_g(trained, 0)
    f, g = map(runs.load, both)
    found = swap_parts(f, g, prepared, 0)
    in_f, in_g = (scores.measure(m, r, prepared, views=0) for m, r in zip((f, g), both, strict=True))
    table = runs.inside_outside(in_f, in_g, prepared, 0)
    assert found[["pair_id", "subset"]].equals(table[["pair_id", "subset"]])
    expected = table["contrast_in"] - table["contrast_out"]
    assert found["clipmem"].tolist() == pytest.approx(expected.tolist(), abs=1e-5) and expected.abs().max() > 0.01
    clean = found["pair_id"].isin(prepared.pair_ids[scores.held_out(prepared)])
    for name in ("pure", "mixed"):
        assert found[name].notna().equals(clean)
    cosine = (in_f["similarity"] + in_g["similarity"])[clean] / 2
    assert found["pure"][clean].tolist() == pytest.approx(cosine.tolist(), abs=1e-5)
    alone = swap_parts(f, f, prepared, 0)
    assert alone[["clipmem", "text_part", "image_part"]].abs().max().max() < 1e-3


def test_each_caption_is_aligned_with_its_picture(prepared, trained):
    recipe = f_and_g(trained, 0)[0]
    model, rows = runs.load(recipe), np.r_[prepared.subsets["pool"][:9], prepared.subsets["external"]]
    found = by_caption(model, prepared, rows)
    count = prepared.tokens.shape[1]
    assert list(found) == ["pair_id", *(f"contrast_{c}" for c in range(count))] and count > 1
    known = scores.measure(model, recipe, prepared, views=0).set_index("pair_id")["contrast"]
    assert found["contrast_0"].tolist() == pytest.approx(known[found["pair_id"]].tolist(), abs=1e-5)
    held, row = scores.held_out(prepared), rows[2]
    images = normalise(torch.from_numpy(prepared.images[np.r_[row, held]]))
    words = torch.from_numpy(np.r_[prepared.tokens[[row], 1], prepared.tokens[held, 0]]).long()
    with torch.no_grad():
        image, text = model.encode_image(images, normalize=True), model.encode_text(words, normalize=True)
    expected = image[0] @ text[0] - (image[0] @ text[1:].T).mean() - (image[1:] @ text[0]).mean()
    assert found["contrast_1"][2] == pytest.approx(float(expected), abs=1e-5)
