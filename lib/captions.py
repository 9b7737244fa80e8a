"""Corrupt pairs on purpose, with the truth kept, and turn captions into numbers.

A `swapped` pair gets all captions of another swapped pair. A `partly_swapped` pair keeps its captions, with a part of
their words replaced by words of another such pair. Both take donors by a derangement: nobody is their own donor, every
caption list of the group is used once, and a donor never has a text of the receiver's own. An `inverted` pair keeps its
captions and shows the negative of its picture.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SHARES = (0.25, 0.5, 0.75)  # share of words replaced, in equal thirds of the partly swapped pairs


class DataError(ValueError):
    """A data set cannot be used; the message names the file, row or column, what was expected, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows, the sentence alone: IPython asks for it."""
        return [f"DataError: {self}"]


@dataclass(frozen=True)
class Corruption:
    """The captions of all N pairs afterwards, and what was done to each."""

    captions: list[list[str]]
    corruption: np.ndarray  # str [N]: "clean", "swapped", "partly_swapped" or "inverted"
    share_swapped: np.ndarray  # float64 [N]: 0 clean, one of SHARES partly swapped, 1 swapped
    donor: np.ndarray  # int64 [N]: row whose captions or words were taken, -1 none


def corrupt(
    captions: list[list[str]], parts: Sequence[np.ndarray], shares: tuple[float, float, float], seed: int
) -> Corruption:
    """Swap, partly swap and invert the given shares of each of `parts`, arrays of rows that have no row in common.

    Donors are of the same part as the receiver; `seed` chooses rows, donors and words. Raise ValueError for impossible
    shares, DataError where a group has one pair only or captions that are too much alike.
    """
    swapped, partly_swapped, inverted = shares
    if min(shares) < 0 or sum(shares) > 1 + 1e-9:  # the sum of three decimal fractions is rarely exact
        raise ValueError(f"swapped, partly_swapped, inverted = {shares}: expected shares >= 0 with a sum of at most 1")
    n, rng = len(captions), np.random.default_rng([seed, 1])
    made = Corruption(list(captions), np.full(n, "clean", "<U14"), np.zeros(n), np.full(n, -1, np.int64))
    for part in parts:
        shuffled = rng.permutation(np.sort(part))
        cut = round(swapped * len(part))
        groups = {"swapped": shuffled[:cut], "partly_swapped": shuffled[cut : cut + round(partly_swapped * len(part))]}
        for name, rows in groups.items():
            made.corruption[rows], made.donor[rows] = name, derange(captions, rows, rng)
            made.share_swapped[rows] = 1.0 if name == "swapped" else np.resize(SHARES, len(rows))
        for row in groups["swapped"]:
            made.captions[row] = captions[made.donor[row]]
        _replace_in(made, captions, groups["partly_swapped"], rng)
    rng = np.random.default_rng([seed, 2])  # of its own, so that the choice of pictures moves no caption
    for part in parts:
        clean = np.sort(part)[made.corruption[np.sort(part)] == "clean"]
        made.corruption[rng.permutation(clean)[: round(inverted * len(part))]] = "inverted"
    return made


def _replace_in(made: Corruption, captions: list[list[str]], rows: np.ndarray, rng: np.random.Generator) -> None:
    """Replace words of the partly swapped `rows`: by the donor's in the same caption, else in any, else by anyone's."""
    everyones = list(dict.fromkeys(_words(text for row in rows for text in captions[row])))
    for row in rows:
        given, share = captions[made.donor[row]], made.share_swapped[row]
        pools = [(_words([given[c % len(given)]]), _words(given), everyones) for c in range(len(captions[row]))]
        own = zip(captions[row], pools, strict=True)
        made.captions[row] = [replace_words(text, words, share, rng) for text, words in own]


def derange(captions: list[list[str]], rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a donor for each of `rows`: a permutation in which no donor shares a text with its receiver.

    In a random permutation, clashing rows exchange donors with a random other row where that helps both. Raise
    DataError where a row finds none.
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
    """Return `caption` with `share` of its words, at least one, each replaced by a different word.

    Bare punctuation is no word; case and punctuation make no difference between words. A new word comes from the first
    of `pools` that has a different one. Raise DataError when none has.
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
    """Return a word as it is compared: without case and punctuation."""
    return re.sub(r"\W+", "", word.casefold())


def encode(captions: list[list[str]], width: int, context: int) -> np.ndarray:
    """Return open_clip's token ids, int32 `[N, width, context]`, 0 = padding; a longer text keeps its end token.

    Pairs with fewer than `width` captions repeat theirs in turn.
    """
    from open_clip import get_tokenizer  # takes seconds to import

    texts = [own[c % len(own)] for own in captions for c in range(width)]
    ids = get_tokenizer("ViT-B-32")(texts, context_length=context).numpy() if texts else np.zeros(0)
    return ids.astype(np.int32).reshape(len(captions), width, context)


def compact(ids: np.ndarray, original_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens int32 `[N, C, L]` in compact ids, and open_clip's id of each compact id, int64 `[V]`.

    Both arguments are open_clip's ids `[N, C, context]`, after and before corruption; L is the longest text's length.
    open_clip's 49,408 words would take most of a small model's memory and time. Keeping those that occur (before or
    after, so that the split makes no difference) in their order is the same function: 0 stays padding, and the end
    token stays the largest id, which is where CLIP reads the text.
    """
    length = int(np.flatnonzero(ids.any(axis=(0, 1)))[-1]) + 1
    token_ids = np.unique(np.concatenate([[0], original_ids.ravel(), ids.ravel()])).astype(np.int64)
    return np.searchsorted(token_ids, ids[:, :, :length]).astype(np.int32), token_ids
