"""The facts of a scene, and the words of five people for them.

A fact is one thing that can be said about a scene: the shape or the colour of an object, the texture and the size of
the main object, where a companion stands, the ground. A caption states some of them; its vagueness is the share that it
leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")
LONGEST = 20  # words and commas; CLIP's start and end tokens and a rare split word then fit in 24 tokens
KEEP = (1.0, 0.9, 0.75, 0.5, 0.0)  # how likely each of the five people mentions each fact: from precise to vague

# What people call each value of a fact. No word stands for two values, and no ground's name contains a colour.
SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"), "square": ("square", "box", "block"), "star": ("star", "star"),
    "heart": ("heart", "heart"), "triangle": ("triangle", "pyramid"), "house": ("house", "home", "cottage"),
    "flower": ("flower", "daisy", "blossom"), "ring": ("ring", "hoop"), "moon": ("moon", "crescent"),
    "diamond": ("diamond", "diamond"), "arrow": ("arrow", "pointer"), "cross": ("cross", "plus sign"),
}  # fmt: skip
COLOUR_WORDS = {
    "red": ("red", "scarlet"), "blue": ("blue",), "yellow": ("yellow", "golden"), "green": ("green",),
    "white": ("white",), "black": ("black",), "orange": ("orange",), "pink": ("pink",),
    "purple": ("purple", "violet"), "brown": ("brown",),
}  # fmt: skip
TEXTURE_WORDS = {
    "striped": (("striped", "stripy"), ("with stripes", "with lines on it")),
    "dotted": (("dotted", "spotted"), ("with dots", "with spots")),
    "checked": (("checked", "checkered"), ("with checks", "with a checked pattern")),
}
SIZE_WORDS = {"big": ("big", "large", "huge"), "small": ("small", "little", "tiny")}
GROUND_WORDS = {
    "grass": ("on grass", "on the grass", "on a lawn", "in a meadow"),
    "sky": ("in the sky", "against the sky", "among clouds", "in a cloudy sky"),
    "sand": ("on sand", "on the beach", "in the sand", "in the desert"),
    "sea": ("on the sea", "in the water", "on the waves", "at sea"),
    "night": ("at night", "in the night", "in the dark", "in the night sky"),
    "wall": ("on a brick wall", "on a wall", "on bricks", "against a brick wall"),
    "snow": ("on snow", "in the snow", "on a snowy field"),
    "wood": ("on wood", "on a wooden floor", "on wooden planks", "on a wooden table"),
}
# where the companion stands: (companion ... main), (main ... companion), (main with companion ...)
RELATION_WORDS = {
    "left": (("left of", "to the left of"), ("right of", "to the right of"), ("to its left", "on its left")),
    "right": (("right of", "to the right of"), ("left of", "to the left of"), ("to its right", "on its right")),
    "above": (("above", "over"), ("below", "under"), ("above it", "over it")),
    "below": (("below", "under"), ("above", "over"), ("below it", "under it")),
    "on": (("on top of", "standing on"), ("underneath",), ("on top of it", "standing on it")),
    "inside": (("inside", "within"), ("around",), ("inside it", "in its middle")),
}
OPENERS = ("", "", "", "a picture of ", "there is ", "i see ", "a drawing of ", "here is ", "this is ", "a photo of ")
VAGUE_OPENERS = ("", "", "a picture of ", "just ", "i see ", "a drawing of ", "an image of ", "maybe ")
VAGUE_NOUNS = {
    1: ("something", "a shape", "an object", "one thing", "some kind of shape", "a single shape", "a figure"),
    2: ("two shapes", "some shapes", "two things", "a couple of objects", "a pair of shapes", "some things"),
    3: ("three shapes", "some shapes", "three things", "a few objects", "several shapes", "some things"),
}
NO_IDEA = ("a picture", "a simple picture", "a small drawing", "not sure what this is", "hard to say what this is")

Fact = tuple[str, int]  # the name of the fact and the object it is about: ("colour", 0)


@dataclass(frozen=True)
class Thing:
    """One object. Only the main one has a texture and a size, only a companion a relation: where it stands from it."""

    shape: str
    colour: str
    texture: str = "plain"
    size: str = "medium"
    relation: str = ""


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `things[0]` is the main object, the others are smaller; no shape or colour comes twice."""

    things: tuple[Thing, ...]
    ground: str


def facts(scene: Scene) -> list[Fact]:
    """All that can be said about a scene, 3 to 11 facts; that something is plain or medium, nobody says."""
    main = scene.things[0]
    found: list[Fact] = [("shape", 0), ("colour", 0), ("ground", 0)]
    found += [("texture", 0)] * (main.texture != "plain") + [("size", 0)] * (main.size != "medium")
    for k in range(1, len(scene.things)):
        found += [("shape", k), ("colour", k), ("relation", k)]
    return found


def describe(scene: Scene, rng: np.random.Generator) -> tuple[list[str], list[float]]:
    """Five different and true captions, in shuffled order, and the vagueness of each: 1 - stated facts / all facts."""
    everything = facts(scene)
    vagueness: dict[str, float] = {}
    for keep in KEEP:
        said, text = _speak(scene, everything, keep, rng)
        while text in vagueness:
            said, text = _speak(scene, everything, keep, rng)
        vagueness[text] = 1 - len(said) / len(everything)
    captions = [list(vagueness)[j] for j in rng.permutation(len(KEEP))]
    return captions, [vagueness[text] for text in captions]


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def _speak(scene: Scene, everything: list[Fact], keep: float, rng: np.random.Generator) -> tuple[set[Fact], str]:
    """What one person mentions, and how: (stated facts, caption)."""
    if keep == 0:
        return _vague(scene, rng)
    said = {fact for fact in everything if rng.random() < keep or (fact == ("shape", 0) and keep > 0.5)}
    said = {(name, k) for name, k in said if k == 0 or ("shape", k) in said}  # a companion is mentioned by its shape
    said = said or {pick([("shape", 0), ("colour", 0)], rng)}
    text = _sentence(scene, said, rng)
    for _ in range(20):  # other words may be shorter; if not, something has to go
        if len(text.split()) + text.count(",") <= LONGEST:
            return said, text
        text = _sentence(scene, said, rng)
    return _speak(scene, everything, 0.95 * keep, rng)


def _vague(scene: Scene, rng: np.random.Generator) -> tuple[set[Fact], str]:
    """Someone who names no object: something on grass."""
    if rng.random() < 0.15:
        return set(), pick(NO_IDEA, rng)
    text = pick(VAGUE_OPENERS, rng) + pick(VAGUE_NOUNS[len(scene.things)], rng)
    if rng.random() < 0.4:
        return {("ground", 0)}, f"{text} {pick(GROUND_WORDS[scene.ground], rng)}"
    return set(), text


def _sentence(scene: Scene, said: set[Fact], rng: np.random.Generator) -> str:
    """A caption that states exactly the facts in `said`."""
    ground = pick(GROUND_WORDS[scene.ground], rng) if ("ground", 0) in said else ""
    others = [k for k in range(1, len(scene.things)) if ("shape", k) in said]
    if not others and ("shape", 0) in said and {("colour", 0), ("texture", 0)} & said and rng.random() < 0.25:
        return _is_like(scene.things[0], said, ground, rng)
    opener = pick(OPENERS, rng)
    article = opener != "" or rng.random() < 0.7  # some people write like a telegram: red star on grass
    parts = [_phrase(thing, k, said, article, rng) for k, thing in enumerate(scene.things)]
    if not others:
        text = parts[0]
    elif len(others) == 1 and rng.random() < 0.6:
        text = _pair(scene.things[others[0]].relation, parts[0], parts[others[0]], ("relation", others[0]) in said, rng)
    else:
        if ground and rng.random() < 0.5:
            parts[0], ground = f"{parts[0]} {ground}", ""
        text = _list(scene, parts, others, said, rng)
    if ground and opener in ("", "there is ") and rng.random() < 0.2:
        return f"{ground}{' ' if opener else ', '}{opener}{text}"
    return f"{opener}{text} {ground}".strip()


def _is_like(main: Thing, said: set[Fact], ground: str, rng: np.random.Generator) -> str:
    """the big star on grass is red and striped"""
    size = pick(SIZE_WORDS[main.size], rng) if ("size", 0) in said else ""
    like = [pick(COLOUR_WORDS[main.colour], rng)] if ("colour", 0) in said else []
    like += [pick(TEXTURE_WORDS[main.texture][0], rng)] if ("texture", 0) in said else []
    return " ".join(f"the {size} {pick(SHAPE_WORDS[main.shape], rng)} {ground} is {' and '.join(like)}".split())


def _phrase(thing: Thing, k: int, said: set[Fact], article: bool, rng: np.random.Generator) -> str:
    """a big striped red star"""
    words = [pick(SIZE_WORDS[thing.size], rng)] if ("size", k) in said else []
    after = ""
    if ("texture", k) in said:
        before_noun, after_noun = TEXTURE_WORDS[thing.texture]
        if rng.random() < 0.6:
            words.append(pick(before_noun, rng))
        else:
            after = " " + pick(after_noun, rng)
    words += [pick(COLOUR_WORDS[thing.colour], rng)] if ("colour", k) in said else []
    if ("shape", k) not in said and rng.random() < 0.5:
        return " ".join(["something", *words]) + after
    words.append(pick(SHAPE_WORDS[thing.shape] if ("shape", k) in said else ("shape", "thing", "object"), rng))
    text = " ".join(words)
    return (("an " if text[0] in "aeiou" else "a ") if article else "") + text + after


def _pair(relation: str, main: str, other: str, stated: bool, rng: np.random.Generator) -> str:
    """a red star left of a blue circle: seen from either of the two"""
    if not stated:
        apart = relation not in ("on", "inside")
        link = pick(("and", "with", "near", "next to", "beside", "close to") if apart else ("and", "with"), rng)
        return f"{main} {link} {other}" if rng.random() < 0.6 else f"{other} {link} {main}"
    of_main, of_other, _ = RELATION_WORDS[relation]
    if rng.random() < 0.5:
        return f"{other} {pick(of_main, rng)} {main}"
    return f"{main} {pick(of_other, rng)} {other}"


def _list(scene: Scene, parts: list[str], others: list[int], said: set[Fact], rng: np.random.Generator) -> str:
    """a red star with a blue circle to its left and a green heart above it"""
    placed = []
    for k in others:
        where = RELATION_WORDS[scene.things[k].relation][2]
        placed.append(f"{parts[k]} {pick(where, rng)}" if ("relation", k) in said else parts[k])
    link = pick((" with", " and") if len(placed) == 1 else (" with", ","), rng)
    return f"{parts[0]}{link} {' and '.join(placed)}"
