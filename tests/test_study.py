"""How a notebook begins and ends."""

import pandas as pd
import pytest
from photo_sets import caption, columns, write_parquet

from lib import figures, labels, plans, store, study, sweep
from lib.data import DataError


def test_bad_parameters_name_what_was_expected():
    with pytest.raises(ValueError, match="seeds: expected a whole number of at least 1, got 0"):
        study.begin("02_x", "smoke", "scenes", 0)
    with pytest.raises(ValueError, match="Did you mean 'smoke'"):
        study.begin("02_x", "smok", "scenes", 1)


def test_it_says_where_numbers_come_from_and_what_is_left_to_train(capsys):
    begun = study.begin("02_x", "smoke", "scenes", 1)
    said = capsys.readouterr().out
    assert "scenes at scale smoke: 160 shared" in said and "0 of 3 runs are in the store" in said
    assert [recipe.seed for recipe in begun.recipes] == [0, 0, 1] and len(begun.about["run_keys"]) == 3


def test_captions_in_a_column_of_any_name_and_pictures_that_are_not_published(tmp_path, runs):
    table = {**columns(260), "remark": [caption(i, 2) for i in range(260)]}
    del table["captions"]
    path = write_parquet(tmp_path / "mine.parquet", table)
    with pytest.raises(DataError, match=r"captions = 'text' in the notebook"):
        study.begin("02_x", "smoke", path, 1)
    with pytest.warns(UserWarning, match="smaller than asked for"):
        begun = study.begin("02_x", "smoke", path, 1, captions="remark")
    assert begun.prepared.captions[0][0].startswith("somebody saw a")
    figure = figures.wall(begun.prepared.pairs.images[:2], ["a", "b"], ["1", "2"])
    assert study.keep(begun, figure, "wall", pd.DataFrame({"caption": ["a", "b"]})) == []
    assert (runs / "private" / "mine-smoke" / "02_wall.png").is_file()


@pytest.fixture
def untimed(monkeypatch):
    """Without the trial steps from which the time of a training is estimated."""
    monkeypatch.setattr(sweep, "estimate_minutes", lambda recipes, prepared: 1.0)


def test_conditions_that_need_more_captions_than_there_are_fall_away(tmp_path, untimed):
    path = write_parquet(tmp_path / "two.parquet", columns(600))  # two captions each
    begun = study.begin("04_x", "smoke", path, 1, plan=plans.mitigations)
    planned = plans.mitigations(begun.base)
    assert set(planned) - set(begun.conditions) == {name for name, r in planned.items() if r.captions > 2}
    assert "5 captions" in planned and "5 captions" not in begun.conditions and "CLIP" in begun.conditions
    assert {name: planned[name] for name in begun.conditions} == begun.conditions
    assert set(begun.recipes) == set(plans.runs(begun.conditions, [0])) and begun.null in begun.recipes
    scenes = study.begin("04_x", "smoke", "scenes", 1, plan=plans.mitigations)
    assert set(scenes.conditions) == set(plans.mitigations(scenes.base))  # five captions each


def test_notebooks_say_which_runs_they_use(untimed):
    one = study.begin("02_x", "smoke", "scenes", 2)
    other = study.begin("01_x", "smoke", "scenes", 1, plan=plans.paradigms)
    used, keys = store.uses(), one.about["run_keys"]
    assert set(used) == {*keys, *other.about["run_keys"]}
    assert sorted(used[k] for k in keys) == ["01, 02"] * 3 + ["02"] * 2  # f and g of seed 0, and f of seed 1: the null
    study.begin("02_x", "smoke", "scenes", 1)
    assert sorted(store.uses()[k] for k in keys if k in store.uses()) == ["01, 02"] * 3


def test_labels_without_classes_are_refused_and_other_objectives_are_not(tmp_path, untimed):
    captions = [[f"number {i} of many", f"it is the {i}th"] for i in range(600)]
    path = write_parquet(tmp_path / "plain.parquet", columns(600, captions=captions))
    begun = study.begin("02_x", "smoke", path, 1)
    assert begun.prepared.class_names == () and begun.prepared.targets.shape == (600, 0)
    with pytest.raises(DataError) as ours:
        study.begin("01_x", "smoke", path, 1, plan=plans.paradigms)
    with pytest.raises(DataError) as theirs:
        labels.targets(begun.prepared.pairs, begun.prepared.pairs.captions)
    assert str(ours.value) == str(theirs.value) and "tell 0 classes" in str(ours.value)
