"""Check an answer to an exercise of a notebook: one friendly sentence, and never the answer.

The exercises work on small published tables, so the right numbers are the same for everybody. exercises.json, which
`python -m lib.pages --write` writes, holds none of them, only the hash of its place on a logarithmic grid.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

TABLES = Path(__file__).resolve().parent.parent / "figures" / "scenes-laptop"
KNOWN = Path(__file__).with_name("exercises.json")
STEP, REACH = 0.001, 10  # the grid has steps of 0.1 %; ten of them to either side are the tolerance of 1 %
ZERO = 1e-12  # what is smaller counts as zero
MARGIN = 0.005  # by how much ROC AUC a score has to be better than the best single column


def table(name: str) -> pd.DataFrame:
    """Return a published table, such as "02_wrong_captions". Raise FileNotFoundError for another name."""
    path = TABLES / f"{name}.csv"
    if not path.is_file():
        names = ", ".join(sorted(other.stem for other in TABLES.glob("*.csv")))
        raise FileNotFoundError(f"{path} is missing. There are: {names}")
    return pd.read_csv(path)


def hashes(exercise: str, number: float) -> list[str]:
    """Return the hashes of all places within 1 % of a number, its own in the middle. `exercise`: such as "02-1"."""
    middle = round(math.log(max(abs(number), ZERO)) / STEP)
    places = [f"{exercise} {number < -ZERO} {middle + away}" for away in range(-REACH, REACH + 1)]
    return [hashlib.sha256(place.encode()).hexdigest()[:20] for place in places]


def check(notebook: str, number: int, answer: Any) -> None:
    """Print what is to be said about an answer to exercise `number` of a notebook, such as "02"."""
    print(f"Exercise {number}: {judge(notebook, number, answer)[1]}")


def judge(notebook: str, number: int, answer: Any) -> tuple[bool, str]:
    """Return whether an answer is right, and a sentence that says so or helps. Raise KeyError: no such exercise."""
    exercise, every = f"{notebook}-{number}", json.loads(KNOWN.read_text(encoding="utf-8"))
    if exercise not in every:
        raise KeyError(f"there is no exercise {exercise}: {', '.join(every)}")
    if answer is None:
        return False, "not tried yet."
    known = every[exercise]
    return _judge_scores(known, answer) if "table" in known else _judge_number(exercise, known, answer)


def _described(answer: Any) -> str:
    kind = type(answer).__name__.replace("ndarray", "NumPy array")
    if hasattr(answer, "__len__"):
        return f"the text {answer[:30]!r}" if isinstance(answer, str) else f"a {kind} of {len(answer)}"
    return f"a {kind}: call it" if callable(answer) else f"{answer!r:.30}"


def _judge_number(exercise: str, known: dict[str, Any], answer: Any) -> tuple[bool, str]:
    if getattr(answer, "ndim", None) == 0:  # a number of NumPy or torch
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return False, f"give one number, found {_described(answer)}."
    if not math.isfinite(answer):
        return False, f"give one number, found {answer}. Is a group empty, or a name misspelt?"
    near = hashes(exercise, answer)
    if known["right"] in near:
        return True, "right, within 1 %."
    hints = [hint for mistake, hint in known["mistakes"].items() if mistake in near]
    slips = {"right size, wrong sign": -answer, "that is in percent. Give a fraction": answer / 100}
    slips["the other way round. What you divide by belongs on top"] = 1 / answer if abs(answer) > ZERO else 0
    hints += [hint for hint, meant in slips.items() if known["right"] in hashes(exercise, meant)]
    return False, f"not yet: {hints[0]}." if hints else "not yet. One number is expected, within 1 %."


def _judge_scores(known: dict[str, Any], answer: Any) -> tuple[bool, str]:
    pairs, (high, low) = table(known["table"]), known["pairs"]
    if isinstance(answer, pd.Series) and answer.index.is_unique and set(answer.index) == set(pairs.index):
        answer = answer.reindex(pairs.index)  # sorted in another way
    try:
        pairs["answer"] = np.array(answer, dtype=float).reshape(len(pairs))
    except (TypeError, ValueError):
        return False, f"give one number per row of the table, {len(pairs)} in all, found {_described(answer)}."
    if not np.isfinite(pairs["answer"]).all():
        return False, "not yet: some of the scores are missing or infinite."
    used = pairs[pairs["corruption"].isin([high, low])]
    if used["answer"].nunique() == 1:
        return False, "not yet: a constant tells no pair from another."
    quality = {name: roc_auc_score(used["corruption"] == high, used[name]) for name in (*known["columns"], "answer")}
    mine = quality.pop("answer")
    best = max(quality, key=lambda name: abs(quality[name] - 0.5))
    needed = 0.5 + abs(quality[best] - 0.5) + MARGIN
    if max(mine, 1 - mine) > 0.99 or used.groupby("corruption")["answer"].nunique().min() == 1:
        return False, f"not accepted: this contains the planted truth. Use only {', '.join(known['columns'])}."
    if 1 - mine >= needed:
        return False, f"not yet: right size, wrong sign. The {high} pairs need the higher scores."
    told = f"your score has a ROC AUC of {mine:.3f}"
    if mine < needed:
        return False, f"not yet: {told}, and {needed:.3f} is needed. `{best}` alone has {needed - MARGIN:.3f}. Combine."
    return True, f"right: {told}, more than any column alone."
