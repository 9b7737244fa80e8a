"""What each image is called, for training and judging on labels: a source's own labels, else nouns of its captions."""

import re

import numpy as np

from lib.pairs import Pairs
from lib.sources import DataError

LEAST_SHARE = 0.01  # of the images: a rarer noun is no class
NOUNS = (  # common things in photographs; a class, named by its first word, holds where one of its words occurs
    ("man", "men", "guy", "guys"),
    ("woman", "women", "lady", "ladies"),
    ("boy", "boys"),
    ("girl", "girls"),
    ("child", "children", "kid", "kids", "toddler", "toddlers", "baby", "babies"),
    ("people", "crowd", "crowds"),
    ("dog", "dogs", "puppy", "puppies"),
    ("cat", "cats", "kitten", "kittens"),
    ("horse", "horses"),
    ("water", "ocean", "sea", "lake", "river", "pool"),
    ("grass", "lawn", "grassy"),
    ("snow", "snowy"),
    ("beach", "beaches", "shore", "sand"),
    ("street", "streets", "road", "roads", "sidewalk"),
    ("mountain", "mountains", "hill", "hills", "cliff"),
    ("ball", "balls", "football", "baseball", "basketball"),
    ("bike", "bikes", "bicycle", "bicycles"),
    ("car", "cars", "truck", "trucks", "bus", "buses"),
    ("train", "trains"),
    ("table", "tables"),
    ("tree", "trees"),
    ("building", "buildings"),
    ("shirt", "shirts"),
    ("hat", "hats", "helmet", "helmets"),
)


def targets(pairs: Pairs, captions: list[list[str]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """What each of N images is called, and the names of the K classes.

    From the labels of the source, one or several an image, else from NOUNS that its captions hold as whole words.

    Args:
        captions: of all N pairs, as they were before any corruption.

    Returns:
        float32 [N, K], a row uniform over the image's classes with sum 1, or all 0 where none is known; and K names.
        Classes without an image are left out, and so are nouns that under 1 % of the images have.

    Raises:
        DataError: fewer than two classes are left.
    """
    if pairs.labels is not None:
        source, (held, names) = "labels", _named(pairs, [[one] for one in pairs.labels.tolist()])
    elif pairs.label_sets is not None:
        source, (held, names) = "sets of labels", _named(pairs, pairs.label_sets)
    else:
        source, (held, names) = "nouns in captions", _nouns(captions)
    if len(names) < 2:
        raise DataError(
            f"{pairs.name}: its {source} tell {len(names)} classes ({', '.join(names)}), at least 2 are needed. Use a "
            f"data set with a column 'label' or 'labels', or with English captions of everyday photographs."
        )
    return (held / np.maximum(1, held.sum(axis=1, keepdims=True))).astype(np.float32), names


def _named(pairs: Pairs, ids: list[list[int]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which class holds, bool [N, K], of the ids that occur; an id below 0 says that none is known."""
    classes = sorted({one for own in ids for one in own if one >= 0})
    place = {one: k for k, one in enumerate(classes)}
    held = np.zeros((len(ids), len(classes)), bool)
    for row, own in enumerate(ids):
        held[row, [place[one] for one in own if one >= 0]] = True
    known = dict(enumerate(pairs.label_names))
    return held, tuple(known.get(one, f"class {one}") for one in classes)


def _nouns(captions: list[list[str]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which noun holds, bool [N, K], of those that are common enough."""
    of_word = {word: k for k, words in enumerate(NOUNS) for word in words}
    held = np.zeros((len(captions), len(NOUNS)), bool)
    for row, own in enumerate(captions):
        words = re.findall(r"\w+", " ".join(own).casefold())
        held[row, [of_word[word] for word in words if word in of_word]] = True
    common = np.flatnonzero(held.mean(axis=0) >= LEAST_SHARE)
    return held[:, common], tuple(NOUNS[k][0] for k in common)


def planted(targets: np.ndarray, donor: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Targets with wrong labels where captions were made wrong: such a row gets the row of its donor.

    As with captions, donors are read before anything is changed. Two images of one class leave each other's unchanged.

    Args:
        targets: float32 [N, K].
        donor: int [N], rows of `targets` (as in `captions.Corruption`, not the pair_id of `Prepared.table`).
        kind: str [N], "wrong" where the donor counts.

    Raises:
        ValueError: a wrong row has no donor among the N.
    """
    wrong = np.flatnonzero(kind == "wrong")
    lost = wrong[(donor[wrong] < 0) | (donor[wrong] >= len(targets))]
    if len(lost):
        raise ValueError(
            f"planted: wrong row {lost[0]} has donor {donor[lost[0]]}, expected a row below {len(targets)}"
        )
    changed = targets.copy()
    changed[wrong] = targets[donor[wrong]]
    return changed
