"""The embedded scenes: the same for everyone, true captions, a long tail, honest ground truth."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from lib.scene_captions import COLOUR_WORDS, GROUND_WORDS, LONGEST, SHAPE_WORDS, Scene, Thing, describe, facts
from lib.scene_pictures import RGB
from lib.scenes import COLOURS, GROUNDS, SHAPES, make_scenes

COLOUR_OF = {word: colour for colour, words in COLOUR_WORDS.items() for word in words}
SHAPE_OF = {word.split()[0]: shape for shape, words in SHAPE_WORDS.items() for word in words}


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(1500, 32, seed=7)


def random_scenes(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        shapes, colours = rng.permutation(SHAPES)[:3], rng.permutation(COLOURS)[:3]
        sides = (rng.choice(["left", "right", "on", "inside"]), rng.choice(["above", "below"]))
        main = Thing(
            shapes[0], colours[0], rng.choice(["plain", "striped", "dotted", "checked"]), rng.choice(["medium", "big"])
        )
        others = [Thing(s, c, relation=r) for s, c, r in zip(shapes[1:], colours[1:], sides, strict=True)]
        yield Scene((main, *others[: rng.integers(0, 3)]), rng.choice(GROUNDS)), rng


def test_shapes_and_types(scenes):
    assert scenes.images.shape == (1500, 3, 32, 32) and scenes.images.dtype == np.uint8
    assert scenes.labels.shape == (1500,) and scenes.labels.dtype == np.int64
    assert scenes.rarity.shape == (1500,) and scenes.rarity.dtype == np.float32
    assert scenes.vagueness.shape == (1500, 5) and scenes.vagueness.dtype == np.float32
    assert scenes.labels.min() == 0 and scenes.labels.max() == len(scenes.label_names) - 1


def test_a_longer_set_starts_with_a_shorter_one(scenes):
    few = make_scenes(20, 32, seed=7)
    assert np.array_equal(few.images, scenes.images[:20]) and few.captions == scenes.captions[:20]
    assert np.array_equal(few.labels, scenes.labels[:20]) and np.array_equal(few.rarity, scenes.rarity[:20])
    assert np.array_equal(few.vagueness, scenes.vagueness[:20])


def test_another_seed_is_another_world(scenes):
    other = make_scenes(20, 32, seed=8)
    assert other.captions != scenes.captions[:20] and not np.array_equal(other.images, scenes.images[:20])


def test_another_size_shows_the_same_scenes(scenes):
    large = make_scenes(20, 64, seed=7)
    assert large.captions == scenes.captions[:20] and np.array_equal(large.rarity, scenes.rarity[:20])
    halved = large.images.reshape(20, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.abs(halved - scenes.images[:20]).mean() < 12


def test_every_picture_is_unique_and_none_is_empty(scenes):
    assert len({image.tobytes() for image in scenes.images}) == 1500
    assert scenes.images.std(axis=(1, 2, 3)).min() > 5


def test_five_different_short_captions(scenes):
    assert all(len(five) == len(set(five)) == 5 for five in scenes.captions)
    assert max(len(text.split()) + text.count(",") for five in scenes.captions for text in five) <= LONGEST
    assert len({text for five in scenes.captions for text in five}) > 3000


def test_captions_fit_the_context_of_24_tokens(scenes):
    open_clip = pytest.importorskip("open_clip")
    tokens = open_clip.get_tokenizer("ViT-B-32")([text for five in scenes.captions for text in five])
    assert (tokens != 0).sum(dim=1).max() <= 24


def test_captions_are_true():
    for scene, rng in random_scenes(300):
        shapes, colours = {t.shape for t in scene.things}, {t.colour for t in scene.things}
        for text in describe(scene, rng)[0]:
            words = text.replace(",", "").split()
            assert {COLOUR_OF[w] for w in words if w in COLOUR_OF} <= colours, text
            assert {SHAPE_OF[w] for w in words if w in SHAPE_OF} <= shapes, text
            for ground, phrases in GROUND_WORDS.items():
                assert ground == scene.ground or not any(f" {p} " in f" {' '.join(words)} " for p in phrases), text
            number = {"two": 2, "couple": 2, "pair": 2, "three": 3, "few": 3, "several": 3, "one": 1, "single": 1}
            assert all(number.get(w, len(scene.things)) == len(scene.things) for w in words), text


def test_colours_stand_before_their_own_shapes():
    seen = 0
    for scene, rng in random_scenes(200):
        pairs = {(t.colour, t.shape) for t in scene.things}
        for text in describe(scene, rng)[0]:
            words = text.replace(",", "").split()
            told = [(COLOUR_OF[a], SHAPE_OF[b]) for a, b in pairwise(words)
                    if a in COLOUR_OF and b in SHAPE_OF]  # fmt: skip
            assert set(told) <= pairs, text
            seen += len(told)
    assert seen > 300


def test_left_and_right_are_never_swapped():
    main, other = Thing("star", "red"), Thing("heart", "blue", relation="left")
    rng, seen = np.random.default_rng(1), set()
    for _ in range(200):
        for text in describe(Scene((main, other), "grass"), rng)[0]:
            first = text.find("star") < text.find("heart")
            if ("left of" in text or "right of" in text) and "star" in text:
                assert ("right of" in text) == first, text
                seen.add(first)
            assert "to its right" not in text and "on its right" not in text
    assert seen == {True, False}


def test_vagueness_is_the_share_of_unstated_facts():
    scene = Scene((Thing("star", "red", "striped", "big"),), "grass")
    assert len(facts(scene)) == 5
    texts, vagueness = describe(scene, np.random.default_rng(0))
    for text, vague in zip(texts, vagueness, strict=True):
        words = set(text.replace(",", "").split())
        told = ({"star"}, {"red", "scarlet"}, {"striped", "stripy", "stripes", "lines"}, {"big", "large", "huge"},
                {"grass", "lawn", "meadow"})  # fmt: skip
        assert vague == pytest.approx(1 - sum(bool(words & fact) for fact in told) / 5), text


def test_vagueness_spreads_from_precise_to_vague_in_every_column(scenes):
    assert scenes.vagueness.min() == 0 and scenes.vagueness.max() == 1
    assert scenes.vagueness.min(axis=1).max() < 0.35 and scenes.vagueness.max(axis=1).min() > 0.6
    assert np.ptp(scenes.vagueness.mean(axis=0)) < 0.06


def test_rarity_is_spread_and_goes_with_frequency(scenes):
    assert 0 <= scenes.rarity.min() < 0.05 and 0.95 < scenes.rarity.max() <= 1
    assert np.abs(np.histogram(scenes.rarity, bins=5, range=(0, 1))[0] / 1500 - 0.2).max() < 0.05
    by_shape = [scenes.rarity[scenes.labels == k].mean() for k in range(len(SHAPES))]
    assert by_shape[0] < 0.5 < by_shape[-1]


def test_the_tail_is_long(scenes):
    kinds = Counter(scenes.rarity.tolist()).most_common()
    assert kinds[0][1] >= 20 * kinds[-1][1] and sum(count == 1 for _, count in kinds) > 100
    shapes = np.bincount(scenes.labels)
    assert shapes.max() > 5 * shapes.min() and shapes.min() >= 20


def test_the_words_of_a_fact_are_its_own():
    for table in (SHAPE_WORDS, COLOUR_WORDS, GROUND_WORDS):
        assert max(Counter(w for words in table.values() for w in set(words)).values()) == 1
    assert set(RGB) == set(COLOURS)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0, 32, 0), "n"), ((10, 15, 0), "pixels"), ((10, 32, -1), "seed"), ((2.5, 32, 0), "n"), ((True, 32, 0), "n")],
)
def test_bad_input_is_named(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number of at least .*: \w+"):
        make_scenes(*arguments)
