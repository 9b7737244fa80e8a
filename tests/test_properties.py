"""What holds for all captions, splits, embeddings and scores, not only for those that somebody thought of."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lib import scores, stats, utility
from lib.captions import compact, corrupt, encode
from lib.data import split
from lib.recipes import DataConfig

settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)  # the same examples in every run
settings.load_profile("quick")

texts = st.lists(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4), min_size=40, max_size=80)
seeds = st.integers(0, 2**31)


def unit(rng, *shape):
    return F.normalize(torch.from_numpy(rng.normal(size=shape)), dim=-1)


@given(texts, seeds, st.floats(0, 0.4), st.floats(0, 0.4))
def test_corruption_keeps_the_truth_whatever_the_captions(captions, seed, swapped, partly):
    captions = [own for own in captions if all(any(one.isalnum() for one in text) for text in own)]
    assume(len(captions) >= 20)
    parts = [np.arange(0, 10), np.arange(10, len(captions))]
    before = [list(own) for own in captions]
    try:
        made = corrupt(captions, parts, (swapped, partly, 0.1), seed)
    except ValueError:
        return  # captions that are too much alike are refused, not swapped with themselves
    assert captions == before
    for row, own in enumerate(captions):
        kind, donor = made.corruption[row], made.donor[row]
        assert (donor >= 0) == (kind in ("swapped", "partly_swapped")) == (made.share_swapped[row] > 0)
        if kind == "swapped":
            assert made.captions[row] == captions[donor] and set(own).isdisjoint(captions[donor])
            assert (row < 10) == (donor < 10), "a donor of the other part"
        elif kind == "partly_swapped":
            assert all(new != old for new, old in zip(made.captions[row], own, strict=True))
        else:
            assert made.captions[row] == own
    for part in parts:
        assert (made.corruption[part] == "swapped").sum() == round(swapped * len(part))


@given(st.lists(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=3), min_size=1, max_size=20))
def test_compact_tokens_are_open_clips(captions):
    ids = encode(captions, 2, 24)
    tokens, token_ids = compact(ids, ids)
    assert np.array_equal(token_ids[tokens], ids[:, :, : tokens.shape[2]]) and not ids[:, :, tokens.shape[2] :].any()
    assert (np.diff(token_ids) > 0).all() and token_ids[0] == 0
    assert (tokens.argmax(axis=2) == ids.argmax(axis=2)).all(), "CLIP reads a text at its largest id"


@given(st.tuples(*[st.integers(0, 60)] * 5), st.integers(0, 50), seeds)
def test_subsets_are_disjoint_sorted_and_as_large_as_asked_for(sizes, left_over, seed):
    config = DataConfig(**dict(zip(DataConfig().sizes(), sizes, strict=True)), seed=seed)
    parts = split(sum(sizes) + left_over, config)
    assert {name: len(rows) for name, rows in parts.items()} == config.sizes()
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == len(rows) and all((np.diff(own) > 0).all() for own in parts.values())


@given(st.integers(1, 4), st.integers(1, 12), st.integers(2, 15), st.integers(1, 6), seeds)
def test_the_fast_alignment_is_the_formula(views, n, held, width, seed):
    rng = np.random.default_rng(seed)
    image, text = unit(rng, views, n, width), unit(rng, n, width)
    held_image, held_text = unit(rng, held, width), unit(rng, held, width)
    own = torch.from_numpy(rng.integers(-1, held, n))
    found = scores.align(image, text, held_image, held_text, own)
    for pair in range(n):
        others = [m for m in range(held) if m != own[pair]]
        cos = [float(view @ text[pair]) for view in image[:, pair]]
        to_texts = [float(view @ held_text[m]) for view in image[:, pair] for m in others]
        to_images = [float(held_image[m] @ text[pair]) for m in others]
        assert float(found.plain[pair]) == pytest.approx(np.mean(cos), abs=1e-12)
        across = np.mean(to_texts) + np.mean(to_images)
        assert float(found.contrast[pair]) == pytest.approx(np.mean(cos) - across, abs=1e-12)


@given(st.integers(2, 30), st.integers(1, 5), seeds)
def test_ranks_of_retrieval_lie_between_the_first_and_the_last_and_a_copy_is_found(n, width, seed):
    image = unit(np.random.default_rng(seed), n, width)
    rank = utility.ranks(image, image)
    assert ((rank >= 0) & (rank <= n - 1)).all()
    if width > 1:
        assert (rank == 0).all()
    shuffled = utility.ranks(image.roll(1, dims=0), image.roll(1, dims=0))
    assert torch.equal(shuffled, rank.roll(1, dims=1)), "the order of the pairs makes a difference"


@given(st.lists(st.floats(-5, 5), min_size=30, max_size=60), st.floats(0.1, 10), st.floats(-3, 3), seeds)
def test_an_interval_moves_with_its_scores(values, scale, shift, seed):
    values = np.array(values) + np.random.default_rng(seed).normal(0, 0.1, len(values))
    values = values[: len(values) // 2 * 2]
    rows = np.arange(len(values))
    table = pd.DataFrame({"seed": rows % 2, "pair_id": rows // 2, "clipmem": values})
    moved = table.assign(clipmem=scale * table["clipmem"] + shift)
    first, other = (stats.mean(one, n_boot=50) for one in (table, moved))
    assert first.low <= first.value <= first.high
    assert [other.low, other.value, other.high] == pytest.approx(
        [scale * limit + shift for limit in (first.low, first.value, first.high)], rel=1e-6, abs=1e-6
    )
