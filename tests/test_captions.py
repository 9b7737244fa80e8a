"""Corruption keeps its promises and the truth about each pair; compact tokens are open_clip's."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from open_clip import get_tokenizer
from test_data import caption

from lib.captions import MIN_WORDS, SHARES, compact, corrupt, derange, encode, replace_words, words, words_read

CAPTIONS = [[caption(i), caption(i, 1), caption(i, 2)] for i in range(300)]
IDS = encode(CAPTIONS, 3, 24)
TEXTS = st.lists(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4), min_size=40, max_size=80)
PARTS = [np.arange(50, 150), np.arange(150, 250)]


def made(seed=0, shares=(0.2, 0.3, 0.1), parts=PARTS):
    return corrupt(CAPTIONS, IDS, parts, shares, seed)


def tokens(texts):
    return {row.tobytes() for row in encode([texts], len(texts), 24)[0]}


def test_every_part_gets_its_shares_and_the_truth_is_kept():
    after = made()
    for part in PARTS:
        names, counts = np.unique(after.corruption[part], return_counts=True)
        assert [*names, *counts] == ["clean", "inverted", "partly_swapped", "swapped", 40, 10, 30, 20]
        assert [(after.share_planned[part] == share).sum() for share in (0, *SHARES, 1)] == [50, 10, 10, 10, 20]
    moved = np.isin(after.corruption, ["swapped", "partly_swapped"])
    assert [row for row in range(300) if after.captions[row] != CAPTIONS[row]] == np.flatnonzero(moved).tolist()
    assert (after.donor[~moved] == -1).all() and (after.corruption[[*range(50), *range(250, 300)]] == "clean").all()


def test_donors_are_a_derangement_within_part_and_group():
    after, alone = made(1), made(1, parts=PARTS[:1])
    for part in PARTS:
        for name in ("swapped", "partly_swapped"):
            rows = part[after.corruption[part] == name]
            assert sorted(after.donor[rows]) == rows.tolist() and (after.donor[rows] != rows).all()
    assert all(after.captions[i] == CAPTIONS[after.donor[i]] for i in np.flatnonzero(after.corruption == "swapped"))
    assert after.captions[:150] == alone.captions[:150]  # the second part changes nothing in the first


def test_a_donor_never_has_tokens_of_the_receivers_own():
    captions = [[f"scene {i % 5}", "TEXT  8" if i == 7 else f"text {i}"] for i in range(40)]
    captions += [[f"{'word ' * 30} {i}", f"last {i}"] for i in range(10)]  # these differ only beyond the 24th token
    ids, read = encode(captions, 2, 24), [tokens(own) for own in captions]
    assert read[7] & read[8] and read[40] & read[41]
    for seed in range(20):
        donors = derange(ids, np.arange(50), np.random.default_rng(seed))
        assert all(read[row].isdisjoint(read[donor]) for row, donor in enumerate(donors))


def test_the_share_of_words_is_replaced_by_words_of_the_donor():
    after, rng = made(2), np.random.default_rng(0)
    for row in np.flatnonzero(after.corruption == "partly_swapped"):
        for old, new, other in zip(CAPTIONS[row], after.captions[row], CAPTIONS[after.donor[row]], strict=True):
            replaced = [word for own, word in zip(old.split(), new.split(), strict=True) if word != own]
            assert len(replaced) == max(1, round(after.share_planned[row] * len(old.split())))
            assert {*replaced} <= {*other.split()}
        first = (captions[row][0].split() for captions in (after.captions, CAPTIONS))
        assert after.share_swapped[row] == np.mean([new != old for new, old in zip(*first, strict=True)])
    assert replace_words("a a a a", (["A.", "a"], ["cat"]), 0.5, rng, 4)[0].count("cat") == 2  # A. is no other word
    assert replace_words("a red dog .", (["x"],), 0.75, rng, 4)[1] == 0.75 and words("一只猫") == ([*"一只猫"], "")
    text, share = replace_words("一只红色的猫在公园", (["狗"],), 0.5, rng, 9)
    assert (len(text), text.count("狗"), share) == (9, 4, 4 / 9)


def test_only_words_that_models_read_are_replaced_and_short_captions_are_left_alone():
    long = [[" ".join(f"{word}{i}" for word in ("red", "dog", "sea", "sun")) + " tail" * 30] for i in range(40)]
    assert [words_read(*pair) for pair in ((long[9][0], encode(long[9:], 1, 24)[0, 0]), ("a b", IDS[0, 0]))] == [18, 2]
    captions = long + [["a dog", f"one more dog at number {i}"] for i in range(20)]
    captions += [[f"one more dog at number {i}", "a dog"] for i in range(20, 40)]
    after = corrupt(captions, encode(captions, 2, 24), [np.arange(80)], (0, 0.7, 0), 0)
    assert after.short.sum() == 20 and (after.corruption[40:60] == "clean").all()
    assert (after.corruption == "partly_swapped").sum() == 56 and {own[-1] for own in after.captions[60:]} == {"a dog"}
    for row in np.flatnonzero(after.corruption == "partly_swapped"):
        assert tokens(after.captions[row][:1]).isdisjoint(tokens(captions[row][:1]))
        assert after.captions[row][0].split()[18:] == captions[row][0].split()[18:] and after.share_swapped[row] > 0


def test_only_the_seed_decides_and_the_inverted_pictures_change_no_caption():
    first, again = made(3), made(3, parts=[part[::-1] for part in PARTS])
    assert first.captions == again.captions and (first.corruption == again.corruption).all()
    assert first.captions != made(4).captions and first.captions == made(3, (0.2, 0.3, 0.5)).captions
    assert made(3, (0, 0, 0)).captions == CAPTIONS and (made(3, (0, 0, 1.0)).corruption[50:250] == "inverted").all()


@given(TEXTS, st.integers(0, 2**31), st.floats(0, 0.4), st.floats(0, 0.4))
def test_corruption_keeps_the_truth_whatever_the_captions(captions, seed, swapped, partly):
    captions = [own for own in captions if all(any(one.isalnum() for one in text) for text in own)]
    assume(len(captions) >= 20)
    parts = [np.arange(0, 10), np.arange(10, len(captions))]
    before, ids = [list(own) for own in captions], encode(captions, 4, 24)
    try:
        made = corrupt(captions, ids, parts, (swapped, partly, 0.1), seed)
    except ValueError:
        return  # captions that are too much alike are refused, not swapped with themselves
    assert captions == before
    for row, own in enumerate(captions):
        kind, donor = made.corruption[row], made.donor[row]
        assert (donor >= 0) == (kind in ("swapped", "partly_swapped")) == (made.share_swapped[row] > 0)
        read = [words_read(text, ids[row, c]) for c, text in enumerate(own)]
        if kind == "swapped":
            assert made.captions[row] == captions[donor] and tokens(own).isdisjoint(tokens(captions[donor]))
            assert (row < 10) == (donor < 10), "a donor of the other part"
        elif kind == "partly_swapped":
            assert read[0] >= MIN_WORDS
            changed = [new != old for new, old in zip(made.captions[row], own, strict=True)]
            assert changed == [n >= MIN_WORDS for n in read]
        else:
            assert made.captions[row] == own
    for part in parts:
        assert (made.corruption[part] == "swapped").sum() == round(swapped * len(part))


def test_captions_that_are_alike_are_refused():
    for captions, share in ([["a"]] * 50, 0.5), (CAPTIONS, 0.02):  # all alike; a group of one pair
        with pytest.raises(ValueError, match="finds no other pair"):
            corrupt(captions, encode(captions, 1, 24), [np.arange(50)], (share, 0, 0), 0)
    with pytest.raises(ValueError, match="no word can replace 'dog'"):
        replace_words("dog dog dog dog", (["dog"],), 0.5, np.random.default_rng(0), 4)


def test_compact_tokens_are_open_clips_and_the_end_token_is_the_largest():
    texts = [[f"{caption(i)} {'on ' * i}", "naïve 🐶, $x^2$"][: 1 + i % 2] for i in range(30)]
    original = encode([["another word"]] * 30, 2, 24)
    tokens, token_ids = compact(encode(texts, 2, 24), original)
    whole = get_tokenizer("ViT-B-32")([own[c % len(own)] for own in texts for c in range(2)], context_length=24)
    assert np.array_equal(token_ids[tokens], whole.numpy().reshape(30, 2, 24)) and tokens.dtype == np.int32
    assert token_ids[0] == 0 and (np.diff(token_ids) > 0).all() and set(original.ravel()) <= set(token_ids)
    assert (tokens.max(axis=2) == len(token_ids) - 1).all() and token_ids[-1] == 49407  # a cut text keeps its end too
    assert compact(encode([["a dog"]], 1, 24), original)[0].shape == (1, 1, 4)  # no longer than the longest text
