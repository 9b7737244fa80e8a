"""The answers to the exercises, for instructors; a student's copy lacks this file and answers.toml.

What is right comes from the solutions in the notebooks. A known mistake is a solution with one thing changed, as
answers.toml says, and has a hint. Both are computed from the published tables.

python -m lib.answers            exit 1 when exercises.json does not fit the tables and the solutions
python -m lib.answers --write    write it
"""

import json
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lib import store
from lib.exercises import KNOWN, hashes

ANSWERS = Path(__file__).parent / "teaching" / "answers.toml"
BEGIN, END = "### BEGIN SOLUTION\n", "### END SOLUTION\n"


class AnswersError(ValueError):
    """A solution or a known mistake cannot be computed; the message names it and says what to do."""


@cache
def guide() -> dict[str, dict[str, Any]]:
    """Return answers.toml: exercise ("02-1") -> minutes, difficulty, discussion, mistakes (old, new, hint)."""
    return tomllib.loads(ANSWERS.read_text(encoding="utf-8"))


@cache
def solutions() -> dict[str, tuple[str, str]]:
    """Return exercise -> the code that its notebook's exercises begin with, and the code of its solution."""
    found = {}
    for path in sorted(store.ROOT.glob("notebooks/[0-9]*.ipynb")):
        cells = [(cell["metadata"], "".join(cell["source"])) for cell in json.loads(path.read_text("utf-8"))["cells"]]
        start = next((text for _, text in cells if "from lib.exercises import" in text), "")
        solved = [text for metadata, text in cells if "solution" in metadata.get("tags", [])]
        for number, text in enumerate(solved, 1):
            found[f"{path.stem[:2]}-{number}"] = start, text.split(BEGIN)[1].split(END)[0]
    return found


def answer(exercise: str, old: str = "", new: str = "") -> Any:
    """Return what a solution gives, with `old` replaced by `new` in it. Raise AnswersError where `old` is not there."""
    start, code = solutions()[exercise]
    if old not in code:
        raise AnswersError(f"answers.toml, {exercise}: the solution in the notebook does not contain {old!r}; correct it")
    scope: dict[str, Any] = {}
    exec(f"{start}\n{code.replace(old, new) if old else code}", scope)
    return scope[f"answer_{exercise[-1]}"]


def mistakes(exercise: str) -> dict[str, Any]:
    """Return hint -> what the mistake gives, without those that are within 1 % of what is right or of another mistake."""
    right = answer(exercise)
    kept: dict[str, Any] = {}
    for old, new, hint in guide()[exercise]["mistakes"]:
        wrong = answer(exercise, old, new)
        known = [] if np.ndim(right) else [one for number in (right, *kept.values()) for one in hashes(exercise, number)]
        if np.ndim(right) or not set(hashes(exercise, wrong)) & set(known):
            kept[hint] = wrong
    return kept


def entries() -> dict[str, Any]:
    """Return what exercises.json holds: of each number the hash, and of a score per pair how it is judged."""
    found: dict[str, Any] = {}
    for exercise, about in guide().items():
        own = lambda number, name=exercise: hashes(name, number)[len(hashes(name, number)) // 2]  # noqa: E731
        found[exercise] = about.get("scores") or {
            "right": own(answer(exercise)),
            "mistakes": {own(wrong): hint for hint, wrong in mistakes(exercise).items()},
        }
    return found


def write() -> None:
    """Write exercises.json."""
    store.write_json(KNOWN, entries())


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        write()
    elif not KNOWN.is_file() or json.loads(KNOWN.read_text(encoding="utf-8")) != entries():
        sys.exit(f"{KNOWN} is stale; run: python -m lib.answers --write")
