"""Captions made wrong on purpose, with the truth kept: the ground truth that the paper did not have.

A `wrong` pair gets all captions of another wrong pair; a `dosed` pair keeps its captions, with a part of their words
replaced by words of another dosed pair's captions. Both take donors by a derangement: nobody is their own donor, every
caption list of the group is used once, and a donor never has a text of the receiver's own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from lib.sources import DataError

DOSES = (0.25, 0.5, 0.75)  # share of words replaced, in equal thirds of the dosed pairs


@dataclass(frozen=True)
class Corruption:
    """The captions of all N pairs afterwards, and what was done to each."""

    captions: list[list[str]]
    kind: np.ndarray  # str [N]: "clean", "wrong" or "dosed"
    dose: np.ndarray  # float64 [N]: 0 clean, .25, .5 or .75 dosed, 1 wrong
    donor: np.ndarray  # int64 [N]: row whose captions or words were taken, -1 none


def corrupt(captions: list[list[str]], candidates: np.ndarray, wrong: float, dosed: float, seed: int) -> Corruption:
    """Corrupt a share of the candidate rows.

    Args:
        captions: of all N pairs; rows that are not candidates stay as they are.
        candidates: rows, int [n].
        wrong, dosed: shares of the candidates, in [0, 1], together at most 1.
        seed: of the choice of rows, donors and words.

    Raises:
        DataError: the shares are impossible, a group has one pair only, or its captions are too much alike.
    """
    if min(wrong, dosed) < 0 or wrong + dosed > 1:
        raise DataError(f"wrong={wrong} and dosed={dosed} are shares of the candidates: each >= 0, together at most 1.")
    rng = np.random.default_rng([seed, 1])
    shuffled = rng.permutation(np.sort(candidates))
    cut = round(wrong * len(shuffled))
    groups = {"wrong": shuffled[:cut], "dosed": shuffled[cut : cut + round(dosed * len(shuffled))]}
    kind = np.full(len(captions), "clean")
    dose, donor = np.zeros(len(captions)), np.full(len(captions), -1, np.int64)
    for name, rows in groups.items():
        kind[rows], donor[rows] = name, derange(captions, rows, rng)
        dose[rows] = 1.0 if name == "wrong" else np.resize(DOSES, len(rows))
    changed = list(captions)
    for row in groups["wrong"]:
        changed[row] = captions[donor[row]]
    words = list(dict.fromkeys(_words(chain.from_iterable(captions[row] for row in groups["dosed"]))))
    for row in groups["dosed"]:
        changed[row] = _dosed(captions[row], captions[donor[row]], words, dose[row], rng)
    return Corruption(changed, kind, dose, donor)


def derange(captions: list[list[str]], rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A donor for each of `rows`: a permutation of `rows` in which no donor shares a text with its receiver.

    Starts from a random permutation and exchanges the donors of a clashing row and a random other row where that
    helps both. Raises DataError when no exchange helps.
    """
    texts = {row: {" ".join(text.casefold().split()) for text in captions[row]} for row in rows.tolist()}
    donors = rng.permutation(rows)
    for i, row in enumerate(rows):
        if texts[row].isdisjoint(texts[donors[i]]):
            continue
        for j in rng.permutation(len(rows)):
            if texts[row].isdisjoint(texts[donors[j]]) and texts[rows[j]].isdisjoint(texts[donors[i]]):
                donors[[i, j]] = donors[[j, i]]
                break
        else:
            raise DataError(
                f"row {row} finds no other pair among {len(rows)} whose captions all differ from its own, so none can "
                f"be given to it. Use more candidates, another seed, or data with more varied captions."
            )
    return donors


def replace_words(caption: str, pools: Sequence[Sequence[str]], share: float, rng: np.random.Generator) -> str:
    """`caption` with `share` of its words, at least one, each replaced by a different word.

    Bare punctuation is no word; upper case and punctuation make no difference between words. A new word comes from
    the first of `pools` that has a different one. Raises DataError when none has.
    """
    parts = caption.split()
    places = [place for place, part in enumerate(parts) if _core(part)] or list(range(len(parts)))
    for place in rng.choice(places, max(1, round(share * len(places))), replace=False):
        own = _core(parts[place])
        others = next(filter(None, ([word for word in pool if _core(word) != own] for pool in pools)), None)
        if others is None:
            raise DataError(f"no word can replace '{parts[place]}' in '{caption}': all captions use that one word.")
        parts[place] = others[rng.integers(len(others))]
    return " ".join(parts)


def _dosed(own: list[str], donor: list[str], group: list[str], share: float, rng: np.random.Generator) -> list[str]:
    pools = [(_words([donor[c % len(donor)]]), _words(donor), group) for c in range(len(own))]
    return [replace_words(text, choice, share, rng) for text, choice in zip(own, pools, strict=True)]


def _words(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in text.split() if _core(word)]


def _core(word: str) -> str:
    """A word as compared: without case and punctuation."""
    return re.sub(r"\W+", "", word.casefold())
