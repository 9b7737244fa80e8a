"""What happens to captions: some are made wrong on purpose, with the truth kept, and then all become numbers.

A `wrong` pair gets all captions of another wrong pair; a `dosed` pair keeps its captions, with a part of their words
replaced by words of another dosed pair's captions. Both take donors by a derangement: nobody is their own donor, every
caption list of the group is used once, and a donor never has a text of the receiver's own.
"""

import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.pairs import Pairs
from lib.sources import DataError

DOSES = (0.25, 0.5, 0.75)  # share of words replaced, in equal thirds of the dosed pairs


@dataclass(frozen=True)
class Corruption:
    """The captions of all N pairs afterwards, and what was done to each."""

    captions: list[list[str]]
    kind: np.ndarray  # str [N]: "clean", "wrong" or "dosed"
    dose: np.ndarray  # float64 [N]: 0 clean, .25, .5 or .75 dosed, 1 wrong
    donor: np.ndarray  # int64 [N]: row whose captions or words were taken, -1 none


def corrupt(
    captions: list[list[str]], parts: Sequence[np.ndarray], wrong: float, dosed: float, seed: int
) -> Corruption:
    """Corrupt the shares `wrong` and `dosed` of each of `parts`, arrays of rows that have no row in common.

    Donors are of the same part as the receiver; `seed` chooses rows, donors and words.
    Raises DataError: the shares are impossible, a group has one pair only, or its captions are too much alike.
    """
    if min(wrong, dosed) < 0 or wrong + dosed > 1:
        raise DataError(f"wrong={wrong} and dosed={dosed} are shares of a subset: each >= 0, together at most 1.")
    n, rng = len(captions), np.random.default_rng([seed, 1])
    made = Corruption(list(captions), np.full(n, "clean"), np.zeros(n), np.full(n, -1, np.int64))
    for part in parts:
        shuffled = rng.permutation(np.sort(part))
        cut = round(wrong * len(part))
        groups = {"wrong": shuffled[:cut], "dosed": shuffled[cut : cut + round(dosed * len(part))]}
        for name, rows in groups.items():
            made.kind[rows], made.donor[rows] = name, derange(captions, rows, rng)
            made.dose[rows] = 1.0 if name == "wrong" else np.resize(DOSES, len(rows))
        for row in groups["wrong"]:
            made.captions[row] = captions[made.donor[row]]
        _replace_in(made, captions, groups["dosed"], rng)
    return made


def _replace_in(made: Corruption, captions: list[list[str]], rows: np.ndarray, rng: np.random.Generator) -> None:
    """Replace words of the dosed `rows`: by the donor's in the same caption, else in any, else by anyone's."""
    everyones = list(dict.fromkeys(_words(text for row in rows for text in captions[row])))
    for row in rows:
        given = captions[made.donor[row]]
        made.captions[row] = [
            replace_words(text, (_words([given[c % len(given)]]), _words(given), everyones), made.dose[row], rng)
            for c, text in enumerate(captions[row])
        ]


def derange(captions: list[list[str]], rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A donor for each of `rows`: a permutation of `rows` in which no donor shares a text with its receiver.

    In a random one, clashing rows exchange donors with a random other row where that helps both, else DataError.
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
                f"row {row} finds no other pair among {len(rows)} whose captions all differ from its own. "
                f"Use larger subsets, another seed, or data with more varied captions."
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


def _words(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in text.split() if _core(word)]


def _core(word: str) -> str:
    """A word as compared: without case and punctuation."""
    return re.sub(r"\W+", "", word.casefold())


# --- numbers ---


def encode(captions: list[list[str]], width: int, context: int) -> np.ndarray:
    """open_clip's ids, int32 [N, width, context], 0 = padding; a longer text is cut and keeps its end token.

    Pairs with fewer than `width` captions repeat theirs in turn.
    """
    from open_clip import get_tokenizer  # takes seconds to import

    texts = [own[c % len(own)] for own in captions for c in range(width)]
    ids = get_tokenizer("ViT-B-32")(texts, context_length=context).numpy() if texts else np.zeros(0)
    return ids.astype(np.int32).reshape(len(captions), width, context)


def tokenize(pairs: Pairs, changed: list[list[str]], context: int, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [N, C, L] of the `changed` captions of `pairs`, and token_ids int64 [V]: open_clip's id of each.

    open_clip's 49,408 words would take most of a small model's memory and time. Keeping only those that occur, before
    or after the change (so that the split makes no difference), in their order, is the same function: 0 stays padding
    and the end token stays the largest id, which is where CLIP reads the text. L is the longest text.
    """
    original = _encode_kept(pairs, context, cache)
    ids = original.copy()
    rows = [row for row, (old, new) in enumerate(zip(pairs.captions, changed, strict=True)) if old != new]
    ids[rows] = encode([changed[row] for row in rows], ids.shape[1], context)
    length = int(np.flatnonzero(ids.any(axis=(0, 1)))[-1]) + 1
    token_ids = np.unique(np.concatenate([[0], original.ravel(), ids.ravel()])).astype(np.int64)
    return np.searchsorted(token_ids, ids[:, :, :length]).astype(np.int32), token_ids


def _encode_kept(pairs: Pairs, context: int, cache: Path) -> np.ndarray:
    """Tokens of the captions as loaded; a file keeps them, because 40,000 captions take 4 seconds."""
    file = cache / "tokens" / f"{pairs.fingerprint[:32]}-{context}.npy"
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError):  # absent or damaged
        ids = encode(pairs.captions, max(len(own) for own in pairs.captions), context)
    part = file.with_name(f"{uuid.uuid4().hex}.npy")  # threads and processes may all be here at once
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(part, ids)
        os.replace(part, file)
    except OSError:  # nothing is lost without it but seconds
        part.unlink(missing_ok=True)
    return ids
