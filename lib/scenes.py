"""The embedded data set: a small world of captioned scenes, made from a seed. Nothing is downloaded.

A scene shows one to three objects on a ground. The world is long-tailed on purpose, as photographs are: a few shapes,
colours and grounds are common, each shape has its usual colours and its usual ground, and the rest is rare. Because the
world is known, so is the truth that photographs lack: how rare each scene is, and how vague each of its captions.
"""

from dataclasses import dataclass

import numpy as np

from lib.progress import report
from lib.scene_captions import COLOUR_WORDS, GROUND_WORDS, SHAPE_WORDS, Scene, Thing, describe
from lib.scene_pictures import paint

Array = np.ndarray
SHAPES, COLOURS, GROUNDS = tuple(SHAPE_WORDS), tuple(COLOUR_WORDS), tuple(GROUND_WORDS)  # from common to rare
TEXTURES, P_TEXTURE = ("plain", "striped", "dotted", "checked"), np.array([0.52, 0.25, 0.15, 0.08])
USUAL = {  # the two usual colours and the usual ground of each shape
    "circle": ("red", "blue", "sand"), "square": ("blue", "green", "wood"), "star": ("yellow", "white", "night"),
    "heart": ("red", "pink", "sky"), "triangle": ("green", "orange", "sand"), "house": ("brown", "red", "grass"),
    "flower": ("pink", "purple", "grass"), "ring": ("yellow", "black", "sea"), "moon": ("white", "yellow", "night"),
    "diamond": ("purple", "blue", "snow"), "arrow": ("black", "orange", "wall"), "cross": ("white", "red", "snow"),
}  # fmt: skip
RADII = {"small": (0.15, 0.18), "medium": (0.20, 0.23), "big": (0.27, 0.32), "companion": (0.135, 0.165)}
TOWARDS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1), "on": (0, -1), "inside": (0, 0)}


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
    """The first `n` scenes of world `seed`, drawn `pixels` wide and high.

    Scene i is a function of (seed, i) only: a longer set starts with a shorter one, and another size shows the same
    scenes with the same captions. Raises ValueError when n < 1, pixels < 16 (too few to show a shape) or seed < 0.
    """
    for name, value, least in (("n", n, 1), ("pixels", pixels, 16), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}: it is {value!r}.")
    images = np.empty((n, 3, pixels, pixels), np.uint8)
    captions, labels, rarity, vagueness = [], np.empty(n, np.int64), np.empty(n, np.float32), []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        scene, labels[i], rarity[i] = _imagine(rng)
        texts, vague = describe(scene, rng)
        captions.append(texts)
        vagueness.append(vague)
        images[i] = paint(scene, _arrange(scene, rng), pixels, rng)
        report("drawing scenes", i + 1, n)
    return Scenes(images, captions, labels, SHAPES, rarity, np.array(vagueness, np.float32))


# --- the world: which scenes there are, and how likely each is ---


def _zipf(count: int, power: float = 1.0) -> Array:
    """Probabilities that fall with the rank: 1, 1/2, 1/3, ..."""
    weights = 1 / np.arange(1, count + 1) ** power
    return weights / weights.sum()


def _given_shape(names: tuple[str, ...], usual: list[dict[str, float]], power: float) -> Array:
    """Probabilities [shape, name]: Zipf, and on top of it the shape's usual values with the given weights."""
    extra = np.array([[u.get(name, 0.0) for name in names] for u in usual])
    return extra + (1 - extra.sum(axis=1, keepdims=True)) * _zipf(len(names), power)


P_SHAPE = _zipf(len(SHAPES), 0.9)
P_COLOUR = _given_shape(COLOURS, [{USUAL[s][0]: 0.4, USUAL[s][1]: 0.25} for s in SHAPES], 1.0)
P_GROUND = _given_shape(GROUNDS, [{USUAL[s][2]: 0.3} for s in SHAPES], 0.8)


def _rarity_table() -> Array:
    """Rarity [shape, colour, ground, texture]: the share of the world's scenes that are more likely, plus half of those
    as likely, with p = p(shape) p(colour | shape) p(ground | shape) p(texture). So it is evenly spread over scenes."""
    p = np.einsum("s,sc,sg,t->scgt", P_SHAPE, P_COLOUR, P_GROUND, P_TEXTURE)
    _, kind = np.unique(np.round(-np.log(p), 9), return_inverse=True)
    mass = np.bincount(kind.ravel(), weights=p.ravel())
    return (np.cumsum(mass) - mass / 2)[kind.ravel()].reshape(p.shape)


RARITY = _rarity_table()


def _draw(p: Array, rng: np.random.Generator) -> int:
    """An index with probability in proportion to p."""
    total = np.cumsum(p)
    return int(min(np.searchsorted(total, rng.random() * total[-1], side="right"), len(p) - 1))


def _imagine(rng: np.random.Generator) -> tuple[Scene, int, float]:
    """What a scene shows, the label and the rarity of its main object."""
    s, companions = _draw(P_SHAPE, rng), _draw(np.array([0.4, 0.38, 0.22]), rng)
    c, g, t = _draw(P_COLOUR[s], rng), _draw(P_GROUND[s], rng), _draw(P_TEXTURE, rng)
    size = ("medium", "big", "small")[_draw(np.array([0.45, 0.35, 0.0 if companions else 0.2]), rng)]
    things = [Thing(SHAPES[s], COLOURS[c], TEXTURES[t], size)]
    free_shapes, free_colours, sides = P_SHAPE.copy(), P_COLOUR.copy(), _sides(things[0])
    for _ in range(companions):
        free_shapes[s], free_colours[:, c] = 0, 0  # all shapes and colours of a scene are different
        s = _draw(free_shapes, rng)
        c = _draw(free_colours[s], rng)
        side = sides[int(rng.random() * len(sides))]
        # a second companion stands along the other axis, so that the two do not meet
        sides = [r for r in sides if r in (("above", "below") if side in ("left", "right") else ("left", "right"))]
        things.append(Thing(SHAPES[s], COLOURS[c], relation=side))
    label = SHAPES.index(things[0].shape)
    return Scene(tuple(things), GROUNDS[g]), label, float(RARITY[label, COLOURS.index(things[0].colour), g, t])


def _sides(main: Thing) -> list[str]:
    """Where a companion can stand: inside only what has room and no pattern, on top only of what is flat."""
    roomy = main.size == "big" and main.texture == "plain" and main.shape in ("circle", "square", "ring")
    return ["left", "right", "above", "below"] + ["inside"] * 2 * roomy + ["on"] * 2 * (main.shape == "square")


def _arrange(scene: Scene, rng: np.random.Generator) -> Array:
    """Where things are: x, y, radius, tilt [K, 4]; shares of the picture, y downwards, tilt in radians."""
    low, high = np.array([RADII[t.size if k == 0 else "companion"] for k, t in enumerate(scene.things)]).T
    radius = low + (high - low) * rng.random(len(low))
    x, y, tilt = np.zeros_like(radius), np.zeros_like(radius), rng.uniform(-0.16, 0.16, len(low))
    for k, thing in enumerate(scene.things[1:], start=1):
        dx, dy = TOWARDS[thing.relation]
        apart, slip = radius[0] + radius[k] + rng.uniform(0, 0.03), rng.uniform(-0.3, 0.3) * radius[0]
        if thing.relation == "on":
            apart, slip, tilt[0], tilt[k] = 0.82 * (radius[0] + radius[k]), 0.0, 0.0, 0.0
        if thing.relation == "inside":
            radius[k], slip = 0.42 * radius[0], 0.0
        x[k], y[k] = dx * apart + abs(dy) * slip, dy * apart + abs(dx) * slip
    for at in (x, y):
        start, end = (at - radius).min(), (at + radius).max()
        at += rng.uniform(0.02, 0.98 - (end - start)) - start if end - start < 0.96 else 0.5 - (start + end) / 2
    return np.stack([x, y, radius, tilt], axis=1)
