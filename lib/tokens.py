"""Captions as numbers: open_clip's tokenizer, with the vocabulary cut down to the words that occur.

open_clip's 49,408 words would take most of a small model's memory and time. Keeping only the ids that occur, in their
order, is the same function: 0 stays padding and the end token stays the largest id, which is where CLIP reads the text.
"""

import contextlib
import os
from pathlib import Path

import numpy as np


def encode(texts: list[str], context: int) -> np.ndarray:
    """open_clip's ids, int32 [texts, context], 0 = padding; a longer text is cut and keeps its end token."""
    from open_clip import get_tokenizer  # takes seconds to import

    if not texts:
        return np.zeros((0, context), np.int32)
    return get_tokenizer("ViT-B-32")(texts, context_length=context).numpy().astype(np.int32)


def encode_captions(captions: list[list[str]], width: int, context: int) -> np.ndarray:
    """int32 [N, width, context]; pairs with fewer than `width` captions repeat theirs in turn."""
    flat = [own[c % len(own)] for own in captions for c in range(width)]
    return encode(flat, context).reshape(len(captions), width, context)


def tokenize(
    original: list[list[str]], corrupted: list[list[str]], context: int, cache: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Compact tokens of the corrupted captions, and what they stand for.

    Args:
        original: captions of N pairs as loaded; their tokens are kept in the file `cache` (.npy).
        corrupted: captions of the same N pairs as used, no more a pair than in `original`.
        context: longest text in tokens, start and end included.

    Returns:
        tokens int32 [N, C, L], L the longest text, at most `context`; and token_ids int64 [V], sorted: open_clip's id
        of each compact id, for all words of either set, so that the vocabulary does not depend on what is trained.
    """
    width = max(len(own) for own in original)
    plain = _cached(original, width, context, cache)
    ids = plain.copy()
    changed = [row for row, (old, new) in enumerate(zip(original, corrupted, strict=True)) if old != new]
    ids[changed] = encode_captions([corrupted[row] for row in changed], width, context)
    length = int(np.flatnonzero(ids.any(axis=(0, 1)))[-1]) + 1
    token_ids = np.union1d(np.unique(plain), np.append(np.unique(ids), 0)).astype(np.int64)
    return np.searchsorted(token_ids, ids[:, :, :length]).astype(np.int32), token_ids


def _cached(captions: list[list[str]], width: int, context: int, cache: Path) -> np.ndarray:
    with contextlib.suppress(OSError, ValueError, EOFError):  # absent or damaged
        found = np.load(cache)
        if found.shape == (len(captions), width, context):
            return found
    tokens = encode_captions(captions, width, context)
    part = cache.with_name(f"{cache.name}.{os.getpid()}.npy")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(part, tokens)
        os.replace(part, cache)
    except OSError:  # nothing is lost without it but seconds
        part.unlink(missing_ok=True)
    return tokens
