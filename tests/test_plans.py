"""Every condition differs from its base in exactly what its name says, and what can be shared is trained once."""

import dataclasses
import re
from dataclasses import replace

import pytest

from lib import plans
from lib.recipes import Data, Recipe, at_scale, f_and_g, needed_before

PLANS = (plans.paradigms, plans.mislabelled, plans.attribution, plans.mitigations)
SCENES, PHOTOS = at_scale("laptop", "scenes"), at_scale("laptop", "photos.parquet")
SEEDS = range(3)

# what a name says -> the fields that it changes, beside the number of looks
SAID = {
    "caption|CLIP": {},
    "label|view": {"objective": "{0}"},
    "image retrained": {"frozen": "text"},
    "text retrained": {"frozen": "image"},
    "image augmented": {"crop": 0.5, "colour": 0.2},
    "image augmented more": {"crop": 0.25, "colour": 0.4},
    "words dropped": {"word_dropout": 0.3},
    "other captions": {"captions": 5},
    "(image|text) noise": {"{1}_noise": 0.15},
    "narrow (image|text) tower": {"{1}_width": 0.5},
    r"(\d) captions": {"captions": "{1}"},
    r"noise (after|before) ([0-9.]+)": {"text_noise": "{2}", "noise_at": "{1}"},
    r"(\d+)% removed by (\w+)": {"remove": "{1}", "remove_by": "{2}"},
    "combined": {"captions": 5, "text_noise": 0.15, "noise_at": "before", "crop": 0.5, "colour": 0.2},
}


def said(name, base):
    """The recipe that a name describes; one look is enough where nothing starts from the run."""
    (pattern,) = [pattern for pattern in SAID if re.fullmatch(pattern, name)]
    groups = re.fullmatch(pattern, name)
    fill = lambda text: re.sub(r"\{(\d)\}", lambda m: groups[int(m[1])], text)  # noqa: E731
    changes = {fill(field): fill(v) if isinstance(v, str) else v for field, v in SAID[pattern].items()}
    if "remove" in changes:
        changes["remove"] = round(int(changes["remove"]) / 100 * base.data.candidate)
    kinds = {"captions": int, "text_noise": float}
    return {field: kinds.get(field, lambda v: v)(value) for field, value in changes.items()}


def difference(a, b):
    return {f.name: getattr(b, f.name) for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)}


@pytest.mark.parametrize("base", [SCENES, PHOTOS], ids=["scenes", "photographs"])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.__name__)
def test_conditions_differ_from_the_base_in_what_their_names_say_alone(plan, base):
    conditions = plan(base)
    assert next(iter(conditions.values())) == base, "the first condition is the base"
    for name, recipe in conditions.items():
        expected = said(name, base)
        changed = difference(base, recipe)
        changed.pop("looks", None)
        assert changed == {f: v for f, v in expected.items() if v != getattr(base, f)}, name
        assert bool(changed) == (name not in ("CLIP", "caption"))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.__name__)
@pytest.mark.parametrize("base", [SCENES, PHOTOS], ids=["scenes", "photographs"])
def test_what_a_condition_starts_from_is_in_the_plan_already(plan, base):
    conditions = plan(base)
    shared = set(plans.runs({"CLIP": base}, SEEDS))
    for name, condition in conditions.items():
        for recipe in (r for seed in SEEDS for r in f_and_g(condition, seed)):
            assert set(needed_before(recipe)) <= shared, name
            assert recipe in plans.runs(conditions, SEEDS)


def test_each_model_is_planned_once_and_notebooks_share_f_g_and_the_null():
    planned = [plans.runs(plan(SCENES), SEEDS) for plan in PLANS]
    for runs in planned:
        assert len(runs) == len(set(runs))
    base = {recipe for seed in SEEDS for recipe in f_and_g(SCENES, seed)} | {plans.null_recipe(SCENES, SEEDS)}
    assert set.intersection(*map(set, planned)) == base == set(planned[1]) and len(base) == 7
    attribution, mitigations = set(planned[2]), set(planned[3])
    twins = {replace(SCENES, looks=1, crop=0.5, colour=0.2), replace(SCENES, looks=1, captions=5)}
    twins.add(replace(SCENES, looks=1, text_noise=0.15))
    both = {recipe for twin in twins for seed in SEEDS for recipe in f_and_g(twin, seed)}
    assert attribution & mitigations == base | both


def test_removal_trains_no_g_of_its_own():
    runs = plans.runs(plans.mitigations(SCENES), SEEDS)
    removing = [r for r in runs if r.remove]
    assert len(removing) == 3 * sum(map(len, plans.REMOVED.values()))
    assert all("candidate" in r.trained_on for r in removing)


def test_the_null_is_one_f_more_with_a_seed_that_nothing_else_has():
    null = plans.null_recipe(SCENES, [0, 4])
    assert difference(SCENES, null) == {"seed": 5} and null in plans.runs({"CLIP": SCENES}, [0, 4])


def test_photographs_get_no_condition_that_scenes_do_not_have_and_fewer():
    of_scenes, of_photos = plans.mitigations(SCENES), plans.mitigations(PHOTOS)
    assert set(of_photos) < set(of_scenes) and len(of_photos) < len(of_scenes) / 1.5
    claimed = {"CLIP", "5 captions", "noise before 0.15", "noise after 0.05"}
    claimed |= {"5% removed by clipmem", "5% removed by random"}  # what the claims of notebook 04 are about
    assert claimed <= set(of_photos)


def test_the_share_that_is_removed_is_of_the_candidates_there_are():
    small = plans.mitigations(Recipe(Data("scenes", candidate=50, independent=50)))
    assert small["5% removed by loss"].remove == 2 and small["20% removed by random"].remove == 10
