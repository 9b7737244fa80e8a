"""How a notebook begins and ends."""

import pandas as pd
import pytest
from photo_sets import caption, columns, write_parquet

from lib import figures, study
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
