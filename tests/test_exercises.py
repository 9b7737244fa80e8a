"""The exercises: what is right, what each mistake is told, and that exercises.json gives nothing away."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from lib import course, exercises
from lib.conditions import WRONG

NUMBERS = [name for name, about in course.guide().items() if "scores" not in about]
MISTAKES = [(name, hint) for name in course.guide() for hint in course.mistakes(name)]


def judged(name, answer):
    return exercises.judge(name[:2], int(name[3:]), answer)


def at(x, curve, horizontal, vertical):
    """Read a curve off at `x`, whatever the order of its points."""
    curve = curve.sort_values(horizontal)
    return np.interp(x, curve[horizontal], curve[vertical])


def of_seeds(table, number):
    return np.mean([number(rows) for _, rows in exercises.table(table).groupby("seed")])


def equal_loss(rows):
    rows = rows[rows["subset"] == "pool"]
    last = rows[rows["condition"] == "CLIP"].sort_values("epoch").iloc[-1]
    alone = rows[rows["condition"] == "image retrained"]
    return at(last["loss"], alone, "loss", "clipmem") - last["clipmem"]


def equal_memory(rows):
    point = rows[rows["condition"] == "image augmented"].iloc[0]
    return point["bits"] - at(point["clipmem"], rows[rows["condition"] == "stopped early"], "clipmem", "bits")


def test_the_harder_solutions_agree_with_another_way_to_compute_them():
    wall = exercises.table("02_wrong_captions").query("subset == 'pool' and seed == 0")
    f, g = (wall.loc[wall["member"] == member, "clipmem"].mean() for member in (1, -1))
    both = exercises.table("01_which_pairs").query("corruption == 'clean' and seed < 2")
    both["rank"] = both.groupby("seed")["caption"].rank()
    ranks = both.pivot(index="pair_id", columns="seed", values="rank")
    found = exercises.table("04_removal").query("name == 'highest CLIPMem'")["value_wrong"].item()
    other = {
        "01-3": np.corrcoef(ranks.to_numpy().T)[0, 1],
        "02-2": f - (f + g) / 2,
        "03-3": of_seeds("03_retrained", equal_loss),
        "04-2": (WRONG - WRONG * found) / (1 - WRONG),
        "04-4": of_seeds("04_against_early_stopping", equal_memory),
    }
    assert other == pytest.approx({name: course.answer(name) for name in other})


@pytest.mark.parametrize("name", course.guide())
def test_every_solution_is_right_and_nothing_is_told_to_who_has_not_tried(name):
    right, sentence = judged(name, course.answer(name))
    assert right and sentence.startswith("right")
    assert judged(name, None) == (False, "not tried yet.")


@pytest.mark.parametrize(("name", "hint"), MISTAKES)
def test_every_known_mistake_gets_its_hint(name, hint):
    right, sentence = judged(name, course.mistakes(name)[hint])
    assert not right and hint.strip() in sentence


def test_each_notebook_has_three_exercises_and_nearly_all_mistakes_can_be_told_apart():
    for number in ("01", "02", "03", "04"):
        assert sum(name.startswith(number) for name in course.guide()) >= 3
    listed = sum(len(about["mistakes"]) for about in course.guide().values())
    assert len(MISTAKES) >= 0.9 * listed, "after publishing again, some mistakes may lie within 1 % of what is right"


@pytest.mark.parametrize("name", NUMBERS)
def test_the_tolerance_is_one_percent_and_common_slips_are_named(name):
    right = course.answer(name)
    assert judged(name, right * 1.009)[0] and judged(name, float(f"{right:.3g}"))[0]
    assert not judged(name, right * 1.013)[0] and not judged(name, right / 1.013)[0]
    assert "wrong sign" in judged(name, -right)[1] and "percent" in judged(name, right * 100)[1]
    for constant in (0, 1.234567):
        assert not judged(name, constant)[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (pd.Series([1.0, 2, 3, 4]), "give one number, found a Series of 4"),
        ([0.3], "found a list of 1"),
        (np.zeros(3), "found a NumPy array of 3"),
        (pd.DataFrame({"a": [1, 2]}), "found a DataFrame of 2"),
        ("0.3", "found the text '0.3'"),
        (True, "found True"),
        (np.bool_(True), "found True"),
        (float("nan"), "found nan. Is a group empty"),
        (np.mean, "call it"),
    ],
)
def test_what_is_no_number_is_named(answer, said):
    right, sentence = judged("02-1", answer)
    assert not right and said in sentence


def test_numbers_of_numpy_and_torch_are_numbers():
    right = course.answer("02-1")
    assert all(judged("02-1", kind(right))[0] for kind in (np.float32, np.float64, np.array, torch.tensor))


def test_zero_is_known_by_its_own_hash():
    assert exercises.hashes("x", 0.0) == exercises.hashes("x", -1e-15) != exercises.hashes("x", 1e-9)


def test_a_detector_may_be_sorted_but_not_shorter_constant_or_made_of_the_truth():
    pairs = exercises.table("02_each_pair")
    score = course.answer("02-4")
    assert judged("02-4", score.sort_values())[0] and judged("02-4", list(score))[0]
    rng = np.random.default_rng(0)
    assert "not yet" in judged("02-4", rng.normal(size=len(pairs)))[1]
    assert "one number per row" in judged("02-4", score[:-1])[1] and "found 0.9" in judged("02-4", 0.9)[1]
    assert "found a DataFrame" in judged("02-4", pairs[["clipmem", "outside"]])[1]
    assert "missing" in judged("02-4", score.where(score > 0))[1]
    planted = exercises.table("02_wrong_captions").query("subset == 'pool' and seed == 0")
    planted = planted.set_index("pair_id").loc[pairs["pair_id"]].reset_index()
    swapped = pairs["corruption"] == "swapped"
    for truth in (swapped, -1.0 * swapped, planted["share_swapped"], planted["mislabelled"], score + 5 * swapped):
        right, sentence = judged("02-4", np.array(truth, dtype=float))
        assert not right and "planted truth" in sentence


def test_an_exercise_or_a_table_that_does_not_exist(capsys):
    with pytest.raises(KeyError, match="there is no exercise 02-9: 01-1"):
        exercises.check("02", 9, 1)
    with pytest.raises(FileNotFoundError, match=r"no_table\.csv is missing\. There are: 01_"):
        exercises.table("no_table")
    exercises.check("02", 1, None)
    assert capsys.readouterr().out == "Exercise 1: not tried yet.\n"


def test_a_solution_that_was_rewritten_makes_a_mistake_stale():
    with pytest.raises(ValueError, match=r"answers\.toml, 02-1: no solution contains 'no such code'"):
        course.answer("02-1", "no such code", "x")


def test_what_students_get_of_the_checks_holds_no_answer():
    text = exercises.KNOWN.read_text() + (ROOT / "lib" / "exercises.py").read_text()
    numbers = re.findall(r"\d*\.\d+(?![\df])", text)  # but no format such as :.3f
    for name in NUMBERS:
        assert f"{abs(course.answer(name)):.3g}".lstrip("0") not in numbers, name
