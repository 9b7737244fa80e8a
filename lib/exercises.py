"""Check an answer to an exercise of a notebook: one friendly sentence, and never the answer.

The exercises work on the small tables of the published results, so the right numbers are the same for everybody.
exercises.json, written by `python -m lib.answers --write`, holds no number. It knows each one, and each known mistake, by
a hash of its place on a grid of logarithms. An answer is right when a hash within 1 % of it is the known one.
"""

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

TABLES = Path(__file__).resolve().parent.parent / "figures" / "scenes-laptop"
KNOWN = Path(__file__).with_name("exercises.json")
STEP, REACH = 0.001, 10  # the grid: steps of 0.1 %, and ten of them to either side are the tolerance of 1 %
MARGIN = 0.005  # by how much ROC AUC a score has to be better than the best single column


def table(name: str) -> pd.DataFrame:
    """Return a table of the published results, such as "02_wrong_captions". Raise FileNotFoundError for another name."""
    path = TABLES / f"{name}.csv"
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in TABLES.glob("*.csv")))
        raise FileNotFoundError(f"{path} is missing; the tables are {names or 'all missing: restore them with git'}")
    return pd.read_csv(path)


def hashes(exercise: str, number: float) -> list[str]:
    """Return the hashes of a number of an exercise ("02-1") and of its neighbours within 1 %, its own in the middle."""
    if abs(number) < 1e-12:
        places = ["zero"]
    else:
        middle = round(math.log(abs(number)) / STEP)
        places = [f"{number < 0} {middle + away}" for away in range(-REACH, REACH + 1)]
    return [hashlib.sha256(f"{exercise} {place}".encode()).hexdigest()[:20] for place in places]


@cache
def _known() -> dict[str, Any]:
    return json.loads(KNOWN.read_text(encoding="utf-8"))


def check(notebook: str, number: int, answer: Any) -> None:
    """Print what is to be said about an answer to exercise `number` of a notebook, such as "02"."""
    print(f"Exercise {number}: {judge(notebook, number, answer)[1]}")


def judge(notebook: str, number: int, answer: Any) -> tuple[bool, str]:
    """Return whether an answer is right, and a sentence that says so or helps. Raise KeyError: no such exercise."""
    exercise = f"{notebook}-{number}"
    if exercise not in _known():
        raise KeyError(f"there is no exercise {exercise}: {', '.join(_known())}")
    if answer is None:
        return False, "not tried yet."
    known = _known()[exercise]
    return _judge_scores(known, answer) if "table" in known else _judge_number(exercise, known, answer)


def _described(answer: Any) -> str:
    """Return in words what an answer is that is not what was asked for."""
    kind = type(answer).__name__.replace("ndarray", "NumPy array")
    if isinstance(answer, str):
        return f"the text {answer[:30]!r}"
    if hasattr(answer, "__len__"):
        return f"a {kind} of {len(answer)}"
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
    if hint := next((hint for one, hint in known["mistakes"].items() if one in near), ""):
        return False, f"not yet: {hint}."
    slips = {"right size, wrong sign": -answer, "that is in percent: give a fraction": answer / 100}
    if answer:
        slips["the other way round: what you divide by belongs on top"] = 1 / answer
    hint = next((hint for hint, meant in slips.items() if known["right"] in hashes(exercise, meant)), "")
    return False, f"not yet: {hint}." if hint else "not yet. One number is expected, within 1 %."


def _judge_scores(known: dict[str, Any], answer: Any) -> tuple[bool, str]:
    pairs = table(known["table"])
    if isinstance(answer, pd.Series) and answer.index.is_unique and set(answer.index) == set(pairs.index):
        answer = answer.reindex(pairs.index)  # sorted in another way
    try:
        scores = np.asarray(answer, dtype=float)
    except (TypeError, ValueError):
        scores = np.empty(0)
    if scores.shape != (len(pairs),):
        return False, f"give one number per row of the table, {len(pairs)} in all, found {_described(answer)}."
    if not np.isfinite(scores).all():
        return False, f"not yet: {(~np.isfinite(scores)).sum()} of the scores are missing or infinite."
    kind, (high, low) = pairs["corruption"], known["pairs"]
    used = kind.isin([high, low])
    if np.ptp(scores[used]) == 0:
        return False, "not yet: a constant tells no pair from another."
    quality = {name: float(roc_auc_score(kind[used] == high, pairs.loc[used, name])) for name in known["columns"]}
    mine = float(roc_auc_score(kind[used] == high, scores[used]))
    best = max(quality, key=lambda name: abs(quality[name] - 0.5))
    needed = 0.5 + abs(quality[best] - 0.5) + MARGIN
    if max(mine, 1 - mine) > 0.99 or pd.Series(scores[used]).groupby(kind[used].to_numpy()).nunique().min() == 1:
        names = ", ".join(f"`{name}`" for name in known["columns"])
        return False, f"not accepted: this contains the planted truth, which nobody has outside of here. Use {names}."
    if 1 - mine > needed:
        return False, f"not yet: right size, wrong sign. The {high} pairs need the higher scores."
    told = f"your score has a ROC AUC of {mine:.3f}"
    if mine <= needed:
        return False, f"not yet: {told}; {needed:.3f} is needed, {MARGIN} above the best column alone (`{best}`). Combine."
    return True, f"right: {told}, more than any column alone."
