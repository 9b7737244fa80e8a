"""The answers to the exercises, for instructors: a student's copy lacks this file and the folder teaching.

What is right comes from the solutions in the notebooks. A known mistake is a solution with one thing changed, as
teaching/answers.toml says, and has a hint. Both are computed from the published tables.

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
from lib.exercises import KNOWN, REACH, hashes

TEACHING = Path(__file__).with_name("teaching")
BEGIN, END = "### BEGIN SOLUTION\n", "### END SOLUTION\n"


@cache
def guide() -> dict[str, dict[str, Any]]:
    """Return answers.toml: exercise ("02-1") -> minutes, difficulty, discussion, mistakes (old, new, hint)."""
    return tomllib.loads((TEACHING / "answers.toml").read_text(encoding="utf-8"))


@cache
def _solutions() -> dict[str, tuple[str, str]]:
    """Return exercise -> the cell that the exercises of its notebook begin with, and its solution."""
    found = {}
    for path in sorted(store.ROOT.glob("notebooks/[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        start = next((text for text in texts if "from lib.exercises import" in text), "")
        for number, text in enumerate([text for text in texts if BEGIN in text], 1):
            found[f"{path.stem[:2]}-{number}"] = start, text.split(BEGIN)[1].split(END)[0]
    return found


def answer(exercise: str, old: str = "", new: str = "") -> Any:
    """Return what a solution gives, with `old` replaced by `new` in it. Raise ValueError where `old` is not there."""
    start, code = _solutions()[exercise]
    if old not in code:
        raise ValueError(f"{TEACHING}/answers.toml, {exercise}: no solution contains {old!r}; correct it there")
    scope: dict[str, Any] = {}
    exec(f"{start}\n{code.replace(old, new) if old else code}", scope)
    return scope[f"answer_{exercise[3:]}"]


def mistakes(exercise: str) -> dict[str, Any]:
    """Return hint -> what the mistake gives, without those that are too near to what is right or to another one."""
    numbers, kept = [answer(exercise)], {}
    for old, new, hint in guide()[exercise]["mistakes"]:
        wrong = answer(exercise, old, new)
        if np.ndim(wrong) or not any(set(hashes(exercise, wrong)) & set(hashes(exercise, one)) for one in numbers):
            kept[hint] = wrong
            numbers.append(wrong)
    return kept


def entries() -> dict[str, Any]:
    """Return what exercises.json holds: of each number the hash, and of a score per pair how it is judged."""
    found = {name: about["scores"] for name, about in guide().items() if "scores" in about}
    for name in guide().keys() - found.keys():
        known = {hashes(name, wrong)[REACH]: hint for hint, wrong in mistakes(name).items()}
        found[name] = {"right": hashes(name, answer(name))[REACH], "mistakes": known}
    return found


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        store.write_json(KNOWN, entries())
    elif not KNOWN.is_file() or json.loads(KNOWN.read_text(encoding="utf-8")) != entries():
        sys.exit(f"{KNOWN} is stale; run: python -m lib.answers --write")
