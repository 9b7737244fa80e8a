"""Corruption keeps its promises: shares, derangement, doses, and the truth about each."""

import numpy as np
import pytest
from photo_sets import caption

from lib.captions import corrupt, derange, replace_words
from lib.data import DataError

CAPTIONS = [[caption(i), caption(i, 1), caption(i, 2)] for i in range(300)]
CANDIDATES = np.arange(50, 250)


def test_shares_and_truth():
    after = corrupt(CAPTIONS, [CANDIDATES], wrong=0.2, dosed=0.3, seed=0)
    counts = {(kind, dose): int(((after.kind == kind) & (after.dose == dose)).sum()) for kind, dose in
              [("wrong", 1), ("dosed", 0.25), ("dosed", 0.5), ("dosed", 0.75), ("clean", 0)]}  # fmt: skip
    assert list(counts.values()) == [40, 20, 20, 20, 200]
    touched = np.flatnonzero(after.kind != "clean")
    assert np.isin(touched, CANDIDATES).all()
    assert [row for row in range(300) if after.captions[row] != CAPTIONS[row]] == touched.tolist()
    assert (after.donor[after.kind == "clean"] == -1).all()


def test_donors_are_a_derangement_within_each_group():
    after = corrupt(CAPTIONS, [CANDIDATES], wrong=0.2, dosed=0.3, seed=1)
    for kind in ("wrong", "dosed"):
        rows = np.flatnonzero(after.kind == kind)
        assert sorted(after.donor[rows]) == rows.tolist() and (after.donor[rows] != rows).all()
    wrong = np.flatnonzero(after.kind == "wrong")
    assert all(after.captions[row] == CAPTIONS[after.donor[row]] for row in wrong)


def test_parts_are_corrupted_alike_and_keep_to_themselves():
    one, other = np.arange(150), np.arange(150, 300)
    after = corrupt(CAPTIONS, [one, other], wrong=0.2, dosed=0.3, seed=1)
    alone = corrupt(CAPTIONS, [one], wrong=0.2, dosed=0.3, seed=1)
    for name in ("kind", "dose", "donor"):
        assert np.array_equal(getattr(after, name)[one], getattr(alone, name)[one])
    assert after.captions[:150] == alone.captions[:150]
    for part in (one, other):
        assert np.unique(after.kind[part], return_counts=True)[1].tolist() == [75, 45, 30]
        touched = part[after.kind[part] != "clean"]
        assert sorted(after.donor[touched]) == touched.tolist()


def test_a_donor_never_has_a_text_of_the_receivers_own():
    captions = [[f"scene {i % 5}", f"text {i}"] for i in range(40)]
    captions[7][1] = "TEXT  8"
    for seed in range(20):
        donors = derange(captions, np.arange(40), np.random.default_rng(seed))
        for row, donor in enumerate(donors):
            own = {text.lower().replace("  ", " ") for text in captions[row]}
            assert own.isdisjoint(text.lower() for text in captions[donor])


def test_impossible_corruption_is_refused():
    same = [["one text"]] * 50
    with pytest.raises(DataError, match="finds no other pair"):
        corrupt(same, [np.arange(50)], wrong=0.5, dosed=0, seed=0)
    with pytest.raises(DataError, match="among 1"):
        corrupt(CAPTIONS, [np.arange(50)], wrong=0.02, dosed=0, seed=0)
    with pytest.raises(DataError, match="together at most 1"):
        corrupt(CAPTIONS, [CANDIDATES], wrong=0.8, dosed=0.3, seed=0)


def test_doses_replace_their_share_of_words_by_words_of_the_donor():
    after = corrupt(CAPTIONS, [CANDIDATES], wrong=0.2, dosed=0.3, seed=2)
    for row in np.flatnonzero(after.kind == "dosed"):
        for old, new, given in zip(CAPTIONS[row], after.captions[row], CAPTIONS[after.donor[row]], strict=True):
            pairs = list(zip(old.split(), new.split(), strict=True))
            replaced = [word for before, word in pairs if word != before]
            assert len(replaced) == max(1, round(after.dose[row] * len(pairs)))
            assert set(replaced) <= set(given.split())


def test_single_words_and_punctuation():
    rng = np.random.default_rng(0)
    assert replace_words("dog", (["Dog.", "dog"], ["cat"]), 0.25, rng) == "cat"
    assert replace_words("a dog .", (["x"],), 1.0, rng) == "x x ."
    with pytest.raises(DataError, match="no word can replace 'dog'"):
        replace_words("dog", (["dog"],), 0.5, rng)


def test_the_seed_alone_decides():
    first, again, other = (corrupt(CAPTIONS, [CANDIDATES], 0.2, 0.3, seed) for seed in (3, 3, 4))
    assert first.captions == again.captions and (first.donor == again.donor).all()
    assert first.captions != other.captions
    shuffled = np.random.default_rng(0).permutation(CANDIDATES)
    assert corrupt(CAPTIONS, [shuffled], 0.2, 0.3, 3).captions == first.captions
