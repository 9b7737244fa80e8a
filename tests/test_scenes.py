"""The embedded scenes: the same for everyone, with true captions, a long tail and the ground truth of each pair."""

import hashlib
import json
import re

import numpy as np

from lib.scenes import make_scenes

SHAPES = {
    "circle": "circle|disc|ball", "square": "square|box|block", "star": "star", "heart": "heart", "cross": "cross|plus",
    "triangle": "triangle|pyramid", "house": "house|home|cottage", "flower": "flower|daisy|blossom",
    "ring": "ring|hoop", "moon": "moon|crescent", "arrow": "arrow|pointer", "diamond": "diamond",
}  # fmt: skip
COLOUR = "red|scarlet|blue|yellow|golden|green|white|black|orange|pink|purple|violet|brown"
LOOK = r"big|large|huge|small(?! drawing)|little|tiny|strip\w+|lines|dots|dotted|spot\w+|check\w+"
RELATION = "left|right|above|over|below|under|underneath|on top of|standing on|inside|within|around|in its middle"
FACT = "|".join([*SHAPES.values(), COLOUR, LOOK, RELATION])
GROUNDS = "grass|lawn|meadow", "(?<!night )sky|clouds", "sand|beach|desert", "sea|water|waves"
GROUNDS += "night|dark", "wall|bricks", "snow|snowy", "wood|wooden"
SCENES = make_scenes(1500, 32, seed=7)


def found(pattern, text):
    return re.findall(rf"\b(?:{pattern})\b", text)


def test_a_longer_set_starts_with_a_shorter_one_and_a_larger_picture_shows_the_same():
    few, large = make_scenes(20, 32, seed=7), make_scenes(20, 64, seed=7)
    assert np.array_equal(few.images, SCENES.images[:20]) and make_scenes(20, 32, seed=8).captions != few.captions
    for part in ("captions", "labels", "rarity", "vagueness"):
        assert all(np.array_equal(getattr(one, part), getattr(SCENES, part)[:20]) for one in (few, large))
    assert np.abs(large.images.reshape(20, 3, 32, 2, 32, 2).mean(axis=(3, 5)) - few.images).mean() < 12
    assert len({image.tobytes() for image in SCENES.images}) == 1500 and SCENES.images.std(axis=(1, 2, 3)).min() > 5


def test_captions_are_five_different_short_texts_from_precise_to_vague():
    assert all(len(five) == len(set(five)) == 5 for five in SCENES.captions)
    assert max(len(text.split()) + text.count(",") for five in SCENES.captions for text in five) <= 20
    assert SCENES.vagueness.min(axis=1).max() < 0.35 and SCENES.vagueness.max(axis=1).min() > 0.6
    assert np.ptp(SCENES.vagueness.mean(axis=0)) < 0.06  # shuffled: no column is the vague one


def test_vagueness_is_the_share_of_facts_that_a_caption_leaves_out():
    for five, vagueness in zip(SCENES.captions, SCENES.vagueness, strict=True):
        told = np.array([len(found(FACT, t)) + any(found(g, t) for g in GROUNDS) for t in five])
        facts = set(np.round(told[vagueness < 1] / (1 - vagueness[vagueness < 1]), 3))
        assert len(facts) == 1 and facts <= set(range(3, 12)) and not told[vagueness == 1].any(), five


def test_captions_name_the_label_and_never_contradict_each_other():
    same, names = {"scarlet": "red", "golden": "yellow", "violet": "purple"}, SCENES.label_names
    for five, vagueness, label in zip(SCENES.captions, SCENES.vagueness, SCENES.labels, strict=True):
        assert all(found(SHAPES[names[label]], five[i]) for i in np.flatnonzero(vagueness == 0)), five
        assert sum(any(found(ground, text) for text in five) for ground in GROUNDS) <= 1, five
        told = [(shape, colour) for text in five for shape, words in SHAPES.items()
                for colour in re.findall(rf"\b({COLOUR}) (?:{words})\b", text)]  # fmt: skip
        pairs = {(shape, same.get(colour, colour)) for shape, colour in told}
        assert len(pairs) == len({shape for shape, _ in pairs}) == len({colour for _, colour in pairs}) <= 3, five


def test_rarity_is_evenly_spread_and_goes_with_frequency():
    assert np.abs(np.histogram(SCENES.rarity, bins=5, range=(0, 1))[0] / 1500 - 0.2).max() < 0.05
    counts, by_shape = np.bincount(SCENES.labels), [SCENES.rarity[SCENES.labels == k].mean() for k in range(12)]
    assert by_shape[0] < 0.5 < by_shape[-1] and counts.max() > 5 * counts.min() >= 100


def test_the_world_is_the_one_that_published_results_were_trained_on():
    made = make_scenes(50, 32)
    parts = made.images, made.labels, made.vagueness, np.round(made.rarity, 4)  # 4: no machine rounds it differently
    content = b"".join(part.tobytes() for part in parts) + json.dumps(made.captions).encode()
    assert hashlib.sha256(content).hexdigest() == "f005e3a99a65f6038b9bf098dcc0da1fe292d13853810405fa68e763714aef1d"
