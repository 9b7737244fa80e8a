"""The embedded data set: a small world of captioned scenes, made from a seed. Nothing is downloaded.

A scene shows one to three objects on a ground. The world is long-tailed on purpose, as photographs are: a few shapes,
colours and grounds are common, each shape has its usual colours and its usual ground, and the rest is rare. Because the
world is known, so is the truth that photographs lack: how rare each scene is, and how vague each of its captions."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

Array = np.ndarray
Random = np.random.Generator
# The facts of an object, in the order in which people think of them; that it is plain or of medium size, nobody says.
# The main one, the first: {"shape": "star", "colour": "red", "ground": "sea", "texture": "dotted", "size": "big"}.
# A companion: {"shape": "ring", "colour": "blue", "relation": "left"}.
Thing = dict[str, str]

WORLD = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
USUAL = WORLD["shapes"]  # the shapes from common to rare, with two usual colours and the usual ground of each
SHAPES, COLOURS, GROUNDS = tuple(USUAL), tuple(WORLD["colours"]), tuple(WORLD["grounds"])  # all from common to rare
TEXTURES, P_TEXTURE = ("plain", "striped", "dotted", "checked"), np.array([0.52, 0.25, 0.15, 0.08])
SERIAL = 3000  # scenes that are drawn sooner than other processes begin
LONGEST = 20  # words and commas; CLIP's start and end tokens and a rare split word then fit in 24 tokens
KEEP = (1.0, 0.9, 0.75, 0.5, 0.0)  # how likely each of the five people mentions each fact: from precise to vague
WORDS = WORLD["words"]  # what people call a value, if not by its name; no two values share a word
LINKS = WORLD["links"]  # where the companion is: main ... companion, companion ... main
OPENERS, VAGUE_OPENERS = WORLD["openers"], WORLD["vague_openers"]
VAGUE_NOUNS, NO_IDEA = WORLD["vague_nouns"], WORLD["no_idea"]  # nouns for one, two and three objects


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
    """Return the first `n` scenes of world `seed`, drawn `pixels` wide and high. Scene i is a function of (seed, i): a
    longer set starts with a shorter one, and another size shows the same scenes with the same captions."""
    known = np.empty(n, np.int64), SHAPES, np.empty(n, np.float32), np.empty((n, len(KEEP)), np.float32)
    made = Scenes(np.empty((n, 3, pixels, pixels), np.uint8), [], *known)
    tasks = (delayed(_make)(seed, i, pixels) for i in range(n))
    drawn = Parallel(-1 if n > SERIAL else 1, batch_size=100, return_as="generator")(tasks)  # on all cores
    for i, scene in enumerate(tqdm(drawn, "drawing scenes", n, file=sys.stdout, leave=False, delay=2)):
        made.images[i], texts, made.labels[i], made.rarity[i], made.vagueness[i] = scene
        made.captions.append(texts)
    return made


class Painted:
    """The images of `make_scenes`, uint8 [N, 3, pixels, pixels], some inverted; each is drawn when it is asked for."""

    def __init__(self, n: int, pixels: int, seed: int, inverted: Sequence[int]):
        self.rows, self.draw, self.inverted = np.arange(n), partial(_make, seed, pixels=pixels), {*inverted}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Array:
        return np.stack([self.draw(i)[0] ^ np.uint8(255 * (i in self.inverted)) for i in self.rows[rows].tolist()])


def _make(seed: int, i: int, pixels: int) -> tuple[Array, list[str], int, float, list[float]]:
    """Return the picture, captions, label, rarity and vagueness of scene i."""
    rng = np.random.default_rng([seed, i])
    scene, label, rarity = _imagine(rng)
    texts, vagueness = _describe(scene, rng)
    return paint(scene, pixels, rng), texts, label, rarity, vagueness


def _given_shape(names: tuple[str, ...], power: float, *shares: float) -> Array:
    """Return probabilities [shape, name] that decrease with the name's rank (Zipf), after `shares` for the usual names:
    with .4 and .25, 40 % of the hearts are red, 25 % pink, and the other 35 % have all colours."""
    rank = 1 / np.arange(1, len(names) + 1) ** power  # in proportion to 1, 1/2, 1/3, ... for power 1
    usual = [[name for name in text.split() if name in names] for text in USUAL.values()]
    extra = np.array([[dict(zip(u, shares, strict=False)).get(name, 0.0) for name in names] for u in usual])
    return extra + (1 - extra.sum(axis=1, keepdims=True)) * (rank / rank.sum())


def _rarity_table() -> Array:
    """Return the rarity [shape, colour, ground, texture] of scenes, by their main object: the share of the world's
    scenes that are more likely, plus half of those as likely. So it is evenly spread over scenes."""
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


# --- painting: every pixel is a function of its place (x, y), so no size is special. A shape is a signed distance:
# how far a point lies outside (positive) or inside (negative) of it (https://iquilezles.org/articles/distfunctions2d/)
RGB = WORLD["colours"]
DARK, LIGHT = np.array([22.0, 22.0, 30.0]), np.array([238.0, 238.0, 232.0])
OUTLINE = 0.014  # half its width, as a share of the picture: about one pixel at 32
GROUND_COLOURS = WORLD["grounds"]  # two colours that the pattern mixes, and what lies over them: clouds, stars, joints


def paint(scene: list[Thing], pixels: int, rng: Random) -> Array:
    """Return a picture of the scene, uint8 [3, pixels, pixels]: such as a red star on grass, left of it a blue ring."""
    at = (np.arange(pixels) + 0.5) / pixels  # float64: what two machines round differently stays below a pixel's 8 bits
    x, y = np.meshgrid(at, at)
    places, ground = _arrange(scene, rng), scene[0]["ground"]
    picture, outline = _ground(ground, x, y, rng), LIGHT if ground == "night" else DARK
    for thing, (x0, y0, radius, tilt) in zip(scene, places, strict=True):
        reach = 1.45 * radius  # only the pixels around the thing are computed
        here = tuple(slice(max(0, int((c - reach) * pixels)), int((c + reach) * pixels) + 1) for c in (y0, x0))
        u, v = (x[here] - x0) / radius, (y[here] - y0) / radius
        u, v = u * np.cos(tilt) + v * np.sin(tilt), v * np.cos(tilt) - u * np.sin(tilt)
        distance = DISTANCES[thing["shape"]](u, v) * radius
        shaded = _blend(picture[here], outline, 0.35 * np.exp(-np.maximum(distance, 0) / 0.02))  # soft shadow
        outlined = _blend(shaded, outline, 0.5 - (distance - OUTLINE) * pixels)  # the share of a pixel that is inside
        surface = _surface(thing, u, v, radius, pixels, rng)
        picture[here] = _blend(outlined, surface, 0.5 - (distance + OUTLINE) * pixels)
    glow, angle, slope = rng.uniform(0.86, 1.08), rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.22)
    light = glow + slope * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    return np.clip(picture * light[..., None], 0, 255).astype(np.uint8).transpose(2, 0, 1)


def _arrange(scene: list[Thing], rng: Random) -> Array:
    """Return where things are: x, y, radius, tilt [K, 4]; shares of the picture, y downwards, tilt in radians."""
    sizes = [scene[0].get("size", "medium"), *["companion"] * (len(scene) - 1)]
    low, high = np.array([WORLD["radii"][size] for size in sizes]).T
    radius, tilt, centre = rng.uniform(low, high), rng.uniform(-0.16, 0.16, len(scene)), np.zeros((2, len(scene)))
    for k, thing in enumerate(scene[1:], start=1):
        apart, slip = radius[0] + radius[k] + rng.uniform(0, 0.03), rng.uniform(-0.3, 0.3) * radius[0]
        if thing["relation"] == "on":
            apart, slip, tilt[0], tilt[k] = 0.82 * (radius[0] + radius[k]), 0.0, 0.0, 0.0
        if thing["relation"] == "inside":
            radius[k] = 0.42 * radius[0]
        towards = np.array(WORLD["towards"][thing["relation"]])
        centre[:, k] = towards * apart + abs(towards[::-1]) * slip
    for at in centre:  # x, then y: the group is moved to a place where it fits
        start, end = (at - radius).min(), (at + radius).max()
        at += rng.uniform(0.02, 0.98 - (end - start)) - start if end - start < 0.96 else 0.5 - (start + end) / 2
    return np.stack([*centre, radius, tilt], axis=1)


def _blend(below: Array, above: Array, share: Array) -> Array:
    """Return the colours [H, W, 3] of `below`, covered by `above` where `share` [H, W] is 1 (or more)."""
    return below + (above - below) * np.clip(share, 0, 1)[..., None]


def _surface(thing: Thing, u: Array, v: Array, radius: float, pixels: int, rng: Random) -> Array:
    """Return the colours on a thing: its own, and a second tone for its pattern (or a door, or a flower's middle)."""
    look, texture, pale = rng.random(6), thing.get("texture"), thing["colour"] in ("white", "yellow")
    first = np.clip(np.array(RGB[thing["colour"]]) + 22 * (look[:3] - 0.5), 0, 255)
    second = first + ((DARK if pale else LIGHT) - first) * 0.72
    period, turn = 0.135 + 0.03 * look[3], np.pi * look[4]
    if texture == "checked":
        turn, period = 0.0, 1.3 * period
    a = 2 * np.pi * radius / period * (u * np.cos(turn) + v * np.sin(turn)) + 6 * look[5]
    b = 2 * np.pi * radius / period * (v * np.cos(turn) - u * np.sin(turn))
    waves = {"striped": np.sin(a), "checked": 2 * np.sin(a) * np.sin(b), "dotted": 1.2 * (np.cos(a) + np.cos(b) - 0.75)}
    colour = np.broadcast_to(first, (*u.shape, 3))
    if texture:
        colour = _blend(colour, second, 0.5 + waves[texture] * period / (2 * np.pi) * pixels)
    if mark := MARKS.get(thing["shape"]):
        colour = _blend(colour, DARK if texture else second, 0.5 - mark(u, v) * radius * pixels)
    return colour


def _polygon(u: Array, v: Array, corners: Sequence[Sequence[float]]) -> Array:
    """Return the distance to the nearest edge, negative where a ray from the point crosses an odd number of edges."""
    start = np.array(corners).T[:, :, None, None]
    edge, way = np.roll(start, -1, axis=1) - start, np.stack([u, v])[:, None] - start  # [2, corners, H, W]
    (eu, ev), (wu, wv) = edge, way
    along = np.clip((way * edge).sum(axis=0) / (edge**2).sum(axis=0), 0, 1)
    nearest = np.sqrt(((way - edge * along) ** 2).sum(axis=0).min(axis=0))
    crossed = ((wv >= 0) != (wv - ev >= 0)) & ((eu * wv > ev * wu) == (ev > 0))
    return np.where(crossed.sum(axis=0) % 2 == 1, -nearest, nearest)


def _box(u: Array, v: Array, width: float, height: float) -> Array:
    """Return the distance to a rectangle of the given half width and half height."""
    du, dv = np.abs(u) - width, np.abs(v) - height
    return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0)


def _heart(u: Array, v: Array) -> Array:
    """Return the distance to a heart: two round lobes over a tip."""
    p, q = np.abs(u) / 1.6, (0.88 - v) / 1.6
    lobes = np.hypot(p - 0.25, q - 0.75) - 0.3536
    low = np.maximum(p + q, 0) / 2
    tip = np.sqrt(np.minimum(p**2 + (q - 1) ** 2, (p - low) ** 2 + (q - low) ** 2)) * np.sign(p - q)
    return 1.6 * np.where(p + q > 1, lobes, tip)


def _flower(u: Array, v: Array) -> Array:
    """Return the distance to five round petals: the plane is folded onto one of them."""
    fold, rho = 2 * np.pi / 5, np.hypot(u, v)
    angle = (np.arctan2(u, -v) + fold / 2) % fold - fold / 2
    return np.minimum(np.hypot(rho * np.sin(angle), rho * np.cos(angle) - 0.6) - 0.4, rho - 0.5)


STAR = [(r * np.sin(k * np.pi / 5), -r * np.cos(k * np.pi / 5)) for k, r in enumerate([1.12, 0.5] * 5)]
POLYGONS = {name: partial(_polygon, corners=own) for name, own in ({"star": STAR} | WORLD["polygons"]).items()}
DISTANCES: dict[str, Callable[[Array, Array], Array]] = {  # signed distances of points (u, v), in units of the radius
    "circle": lambda u, v: np.hypot(u, v) - 0.92,
    "square": lambda u, v: _box(u, v, 0.82, 0.82),
    "heart": _heart,
    "flower": _flower,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.76) - 0.22,
    "moon": lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.82 - np.hypot(u - 0.5, v + 0.2)),
    "cross": lambda u, v: np.minimum(_box(u, v, 0.98, 0.34), _box(u, v, 0.34, 0.98)),
    **POLYGONS,
}
MARKS = {"house": lambda u, v: _box(u, v - 0.55, 0.2, 0.32), "flower": lambda u, v: np.hypot(u, v) - 0.3}


def _ground(name: str, x: Array, y: Array, rng: Random) -> Array:
    """Return the pixels [H, W, 3] of a ground; its colours are a little different in each scene."""
    share, *covers = _pattern(name, x, y, rng)
    low, high, *tops = np.array(GROUND_COLOURS[name], float)
    colours = low + rng.uniform(-11, 11, 3) + (high - low) * np.clip(share, 0, 1)[..., None]
    for top, cover in zip(tops, covers, strict=True):
        colours = _blend(colours, top, cover)
    return colours


def _noise(x: Array, y: Array, fx: float, fy: float, rng: Random) -> Array:
    """Return smooth random patches [H, W] between about -1 and 1, with about fx and fy of them across."""
    a, b, c = rng.random((3, 5, 1))
    across = np.exp(2j * np.pi * fx * (0.4 + 0.8 * a) * x[0])
    down = np.exp(2j * np.pi * (fy * (1.6 * b - 0.8) * y[:, 0] + c))
    return (down.T @ across).real / 2.5  # the sum of five waves, cos(2 pi (.. x + .. y + c))


def _pattern(ground: str, x: Array, y: Array, rng: Random) -> list[Array]:
    """Return the share [H, W] of the ground's second colour, and of a third one; they count as if cut to [0, 1]."""
    match ground:
        case "grass":
            return [0.5 + (0.4 * _noise(x, y, 13, 4, rng) + 0.15 * _noise(x, y, 3, 3, rng))]
        case "snow":
            return [0.65 + 0.45 * _noise(x, y, 2.5, 4, rng) + 0.12 * _noise(x, y, 14, 14, rng)]
        case "sky":
            return [y, 0.85 * np.clip(_noise(x, y, 2.2, 4, rng) * 1.6 - 0.35, 0, 1)]
        case "sand":
            bend, turn, count = *rng.random(2), rng.uniform(3.5, 5.5)
            ripples = np.sin(2 * np.pi * (count * y + 0.5 * np.sin(2 * np.pi * (x + turn)) + 0.8 * bend * x))
            return [0.5 + 0.3 * ripples + 0.3 * _noise(x, y, 12, 12, rng)]
        case "sea":
            count, swell, turn = rng.uniform(4.5, 6.5), rng.uniform(2.5, 4), rng.random()
            waves = np.sin(2 * np.pi * (count * y + 0.16 * np.sin(2 * np.pi * (swell * x + turn)) + turn))
            return [y, np.clip(waves, 0, 1) ** 4]
        case "night":
            stars = rng.random((14, 3, 1, 1))
            near = np.exp(-((x - stars[:, 0]) ** 2 + (y - stars[:, 1]) ** 2) / 0.00022) * (0.35 + 0.65 * stars[:, 2])
            return [y, near.max(axis=0)]
        case "wall":
            rows, turns = rng.uniform(5.5, 7), rng.random(3)
            row, up = np.floor(rows * y + turns[0]), (rows * y + turns[0]) % 1
            along = 0.5 * rows * x + 0.5 * (row % 2) + turns[1]
            joint = np.minimum(np.minimum(along % 1, 1 - along % 1) * 2, np.minimum(up, 1 - up))
            tone = np.sin(12.9 * np.floor(along) + 78.2 * row + 6 * turns[2]) * 0.5 + 0.5
            return [tone, 1.6 - 10 * joint]
        case _:  # wood
            planks, turn = rng.uniform(3.5, 5), rng.random()
            plank, edge = np.floor(planks * x + turn), np.abs((planks * x + turn) % 1 - 0.5)
            share = 0.5 + 0.25 * np.sin(7.7 * plank + 6 * turn) + 0.3 * _noise(x + 0.3 * plank, y, 16, 2, rng)
            return [share, 14 * edge - 6.2]
