"""The embedded data set: a small world of captioned scenes, made from a seed. Nothing is downloaded.

A scene shows one to three objects on a ground. The world is long-tailed on purpose, as photographs are: a few shapes,
colours and grounds are common, each shape has its usual colours and its usual ground, and the rest is rare. Because the
world is known, so is the truth that photographs lack: how rare each scene is, and how vague each of its captions.
"""

import sys
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from lib.scenes.pictures import Array, Random, Thing, paint

USUAL = {  # the shapes from common to rare, with two usual colours and the usual ground of each
    "circle": "red blue sand", "square": "blue green wood", "star": "yellow white night", "heart": "red pink sky",
    "triangle": "green orange sand", "house": "brown red grass", "flower": "pink purple grass",
    "ring": "yellow black sea", "moon": "white yellow night", "diamond": "purple blue snow",
    "arrow": "black orange wall", "cross": "white red snow",
}  # fmt: skip
SHAPES = tuple(USUAL)
COLOURS = ("red", "blue", "yellow", "green", "white", "black", "orange", "pink", "purple", "brown")  # common to rare
GROUNDS = ("grass", "sky", "sand", "sea", "night", "wall", "snow", "wood")  # from common to rare
TEXTURES, P_TEXTURE = ("plain", "striped", "dotted", "checked"), np.array([0.52, 0.25, 0.15, 0.08])

LONGEST = 20  # words and commas; CLIP's start and end tokens and a rare split word then fit in 24 tokens
KEEP = (1.0, 0.9, 0.75, 0.5, 0.0)  # how likely each of the five people mentions each fact: from precise to vague
WORDS = {  # what people call a value, if not by its name; no two values share a word, no ground's words name a colour
    "circle": "circle/disc/ball", "square": "square/box/block", "triangle": "triangle/pyramid", "ring": "ring/hoop",
    "house": "house/home/cottage", "flower": "flower/daisy/blossom", "moon": "moon/crescent", "arrow": "arrow/pointer",
    "cross": "cross/plus sign", "red": "red/scarlet", "yellow": "yellow/golden", "purple": "purple/violet",
    "striped": "striped/stripy", "dotted": "dotted/spotted", "checked": "checked/checkered",
    "with striped": "with stripes/with lines on it", "with dotted": "with dots/with spots",
    "with checked": "with checks/with a checked pattern", "big": "big/large/huge", "small": "small/little/tiny",
    "grass": "on grass/on the grass/on a lawn/in a meadow", "sea": "on the sea/in the water/on the waves/at sea",
    "sky": "in the sky/against the sky/among clouds/in a cloudy sky", "snow": "on snow/in the snow/on a snowy field",
    "sand": "on sand/on the beach/in the sand/in the desert",
    "night": "at night/in the night/in the dark/in the night sky",
    "wall": "on a brick wall/on a wall/on bricks/against a brick wall",
    "wood": "on wood/on a wooden floor/on wooden planks/on a wooden table",
    "left": "to its left/on its left", "right": "to its right/on its right", "above": "above it/over it",
    "below": "below it/under it", "on": "on top of it/standing on it", "inside": "inside it/in its middle",
}  # fmt: skip
LINKS = {  # where the companion stands: main ... companion, companion ... main
    "left": ("right of/to the right of", "left of/to the left of"), "above": ("below/under", "above/over"),
    "right": ("left of/to the left of", "right of/to the right of"), "below": ("above/over", "below/under"),
    "on": ("underneath", "on top of/standing on"), "inside": ("around", "inside/within"),
}  # fmt: skip
OPENERS = "///a picture of/there is/i see/a drawing of/here is/this is/a photo of"  # three in ten have none
VAGUE_OPENERS = "//a picture of/just/i see/a drawing of/an image of/maybe"
VAGUE_NOUNS = (  # for one, two and three objects
    "something/a shape/an object/one thing/some kind of shape/a single shape/a figure",
    "two shapes/some shapes/two things/a couple of objects/a pair of shapes/some things",
    "three shapes/some shapes/three things/a few objects/several shapes/some things",
)
NO_IDEA = "a picture/a simple picture/a small drawing/not sure what this is/hard to say what this is"


@dataclass(frozen=True)
class Scenes:
    """N captioned scenes: what `make_scenes` returns."""

    images: Array  # uint8 [N, 3, H, W], RGB
    captions: list[list[str]]  # N lists of 5 texts, not sorted by vagueness
    labels: Array  # int64 [N], the shape of the main (largest) object, an index into label_names
    label_names: tuple[str, ...]
    rarity: Array  # float32 [N] in [0, 1], the share of the world's scenes that are more common (see `_rarity_table`)
    vagueness: Array  # float32 [N, 5] in [0, 1], the share of the scene's facts that the caption leaves out


def make_scenes(n: int, pixels: int, seed: int = 0) -> Scenes:
    """Return the first `n` scenes of world `seed`, drawn `pixels` wide and high.

    Scene i is a function of (seed, i) only: a longer set starts with a shorter one, and another size shows the same
    scenes with the same captions. Fewer than 16 pixels show no shapes.
    """
    made = Scenes(
        images=np.empty((n, 3, pixels, pixels), np.uint8), captions=[], label_names=SHAPES,
        labels=np.empty(n, np.int64), rarity=np.empty(n, np.float32), vagueness=np.empty((n, len(KEEP)), np.float32),
    )  # fmt: skip
    for i in tqdm(range(n), "drawing scenes", file=sys.stdout, leave=False, delay=2):
        rng = np.random.default_rng([seed, i])
        scene, made.labels[i], made.rarity[i] = _imagine(rng)
        texts, made.vagueness[i] = _describe(scene, rng)
        made.captions.append(texts)
        made.images[i] = paint(scene, pixels, rng)
    return made


def _given_shape(names: tuple[str, ...], power: float, *shares: float) -> Array:
    """Return probabilities [shape, name] that fall with the name's rank (Zipf), after `shares` for the usual names.

    Shares of 0.4 and 0.25: 40% of the hearts are red, 25% pink, and the other 35% have all colours.
    """
    rank = 1 / np.arange(1, len(names) + 1) ** power  # in proportion to 1, 1/2, 1/3, ... for power 1
    usual = [[name for name in text.split() if name in names] for text in USUAL.values()]
    extra = np.array([[dict(zip(u, shares, strict=False)).get(name, 0.0) for name in names] for u in usual])
    return extra + (1 - extra.sum(axis=1, keepdims=True)) * (rank / rank.sum())


def _rarity_table() -> Array:
    """Return the rarity [shape, colour, ground, texture] of scenes, by their main object: the share of the world's
    scenes that are more likely, plus half of those as likely. So it is evenly spread over scenes.
    """
    p = np.einsum("s,sc,sg,t->scgt", P_SHAPE, P_COLOUR, P_GROUND, P_TEXTURE)
    _, kind = np.unique(np.round(-np.log(p), 9), return_inverse=True)
    mass = np.bincount(kind.ravel(), weights=p.ravel())
    return (np.cumsum(mass) - mass / 2)[kind.ravel()].reshape(p.shape)


P_SHAPE = _given_shape(SHAPES, 0.9)[0]
P_COLOUR, P_GROUND = _given_shape(COLOURS, 1.0, 0.4, 0.25), _given_shape(GROUNDS, 0.8, 0.3)
RARITY = _rarity_table()


def _draw(p: Array, rng: Random) -> int:
    """Return an index with probability in proportion to p."""
    total = np.cumsum(p)
    return int(min(np.searchsorted(total, rng.random() * total[-1], side="right"), len(p) - 1))


def _pick(words: str, rng: Random) -> str:
    """Return one of the alternatives, all equally likely: "hoop" of "ring/hoop"."""
    options = words.split("/")
    return options[int(rng.random() * len(options))]


def _imagine(rng: Random) -> tuple[list[Thing], int, float]:
    """Return what a scene shows, the main object first, and the label and the rarity of the main object."""
    s, companions = _draw(P_SHAPE, rng), _draw(np.array([0.4, 0.38, 0.22]), rng)
    c, g, t = _draw(P_COLOUR[s], rng), _draw(P_GROUND[s], rng), _draw(P_TEXTURE, rng)
    size = ("medium", "big", "small")[_draw(np.array([0.45, 0.35, 0.0 if companions else 0.2]), rng)]
    main = {"shape": SHAPES[s], "colour": COLOURS[c], "ground": GROUNDS[g], "texture": TEXTURES[t], "size": size}
    scene = [{fact: value for fact, value in main.items() if value not in ("plain", "medium")}]
    label, rarity = s, float(RARITY[s, c, g, t])
    roomy = size == "big" and main["texture"] == "plain" and main["shape"] in ("circle", "square", "ring")
    sides = "left/right/above/below" + "/inside/inside" * roomy + "/on/on" * (main["shape"] == "square")
    free_shapes, free_colours = P_SHAPE.copy(), P_COLOUR.copy()
    for _ in range(companions):
        free_shapes[s], free_colours[:, c] = 0, 0  # all shapes and colours of a scene are different
        s = _draw(free_shapes, rng)
        c = _draw(free_colours[s], rng)
        side = _pick(sides, rng)
        scene.append({"shape": SHAPES[s], "colour": COLOURS[c], "relation": side})
        # a second companion stands along the other axis, so that the two do not meet
        sides = "above/below" if side in ("left", "right") else "left/right"
    return scene, label, rarity


def _describe(scene: list[Thing], rng: Random) -> tuple[list[str], list[float]]:
    """Return five different and true captions in shuffled order, and the vagueness of each: 1 - stated / all facts."""
    vagueness: dict[str, float] = {}
    while len(vagueness) < len(KEEP):  # who says what another one said tries again
        stated, text = _speak(scene, KEEP[len(vagueness)], rng)
        vagueness.setdefault(text, 1 - stated / sum(map(len, scene)))
    captions = [list(vagueness)[j] for j in rng.permutation(len(KEEP))]
    return captions, [vagueness[text] for text in captions]


def _speak(scene: list[Thing], keep: float, rng: Random) -> tuple[int, str]:
    """Return how many facts one person states, and the caption: (2, "a red star"), (1, "something on grass")."""
    if keep == 0:  # someone who names no object
        if rng.random() < 0.15:
            return 0, _pick(NO_IDEA, rng)
        text = _join(_pick(VAGUE_OPENERS, rng), _pick(VAGUE_NOUNS[len(scene) - 1], rng))
        return (1, _join(text, _say(scene[0], "ground", rng))) if rng.random() < 0.4 else (0, text)
    said = [{fact: value for fact, value in thing.items() if rng.random() < keep} for thing in scene]
    said[1:] = [thing if "shape" in thing else {} for thing in said[1:]]  # a companion is mentioned by its shape
    if keep > 0.5 or not any(said):
        fact = "shape" if keep > 0.5 else _pick("shape/colour", rng)
        said[0][fact] = scene[0][fact]
    text = _sentence(said, scene, rng)
    for _ in range(20):  # other words may be shorter; if not, something has to go
        if len(text.split()) + text.count(",") <= LONGEST:
            return sum(map(len, said)), text
        text = _sentence(said, scene, rng)
    return _speak(scene, 0.95 * keep, rng)


def _join(*words: str) -> str:
    """Return the words with a space between them, without the empty ones."""
    return " ".join(filter(None, words))


def _say(thing: Thing, fact: str, rng: Random) -> str:
    """Return words for a stated fact ("scarlet" for the colour red), and "" for one that is not stated."""
    return _pick(WORDS.get(thing[fact], thing[fact]), rng) if fact in thing else ""


def _sentence(said: list[Thing], scene: list[Thing], rng: Random) -> str:
    """Return a caption that states exactly the facts in `said`: "there is a red star with a blue ring on grass"."""
    main, ground = said[0], _say(said[0], "ground", rng)
    others = [k for k, thing in enumerate(said) if k > 0 and thing]
    if not others and "shape" in main and ("colour" in main or "texture" in main) and rng.random() < 0.25:
        size, colour, texture, noun = (_say(main, fact, rng) for fact in ("size", "colour", "texture", "shape"))
        return _join("the", size, noun, ground, "is", colour, "and" if colour and texture else "", texture)
    opener = _pick(OPENERS, rng)
    article = opener != "" or rng.random() < 0.7  # some people write like a telegram: red star on grass
    parts = [_phrase(thing, article, rng) for thing in said]
    text = parts[0]
    if len(others) == 1 and rng.random() < 0.6:
        text = _pair(text, parts[others[0]], scene[others[0]]["relation"], "relation" in said[others[0]], rng)
    elif others:  # a red star with a blue ring to its left and a heart above it
        if ground and rng.random() < 0.5:
            text, ground = f"{text} {ground}", ""
        placed = [_join(parts[k], _say(said[k], "relation", rng)) for k in others]
        text += _pick(" with/ and" if len(others) == 1 else " with/,", rng) + " " + " and ".join(placed)
    if ground and opener in ("", "there is") and rng.random() < 0.2:
        return _join(ground if opener else f"{ground},", opener, text)
    return _join(opener, text, ground)


def _phrase(thing: Thing, article: bool, rng: Random) -> str:
    """Return the words for one object: "a big striped red star", "something blue with dots"."""
    words, after = [_say(thing, "size", rng)], ""
    if "texture" in thing and rng.random() < 0.6:
        words.append(_say(thing, "texture", rng))
    elif "texture" in thing:
        after = _pick(WORDS[f"with {thing['texture']}"], rng)
    words.append(_say(thing, "colour", rng))
    if "shape" not in thing and rng.random() < 0.5:
        return _join("something", *words, after)
    text = _join(*words, _say(thing, "shape", rng) or _pick("shape/thing/object", rng))
    return _join(("an" if text[0] in "aeiou" else "a") if article else "", text, after)


def _pair(main: str, other: str, relation: str, stated: bool, rng: Random) -> str:
    """Return two objects seen from either of them: "a blue ring left of a red star", "a red star near a blue ring"."""
    if stated:
        other_first = rng.random() < 0.5
        link = _pick(LINKS[relation][other_first], rng)
    else:
        link = _pick("and/with" if relation in ("on", "inside") else "and/with/near/next to/beside/close to", rng)
        other_first = rng.random() >= 0.6
    return _join(other, link, main) if other_first else _join(main, link, other)
