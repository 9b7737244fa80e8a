"""How a notebook begins and ends: what it says and refuses, what it keeps, and where."""

import json
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from photo_sets import caption, columns, write_parquet

from lib import costs, figures, findings, runs, stats, store, study, tables
from lib.captions import DataError
from lib.conditions import CONDITIONS
from lib.data import prepare
from lib.recipes import all_models, at_scale

THIRD, NOTEBOOK, FOURTH = "03_encoder_attribution", "02_miscaptioned_memorization", "04_mitigation_utility"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise with two captions each, and no classes."""
    return write_parquet(tmp_path_factory.mktemp("photos") / "mine.parquet", columns(500))


@pytest.fixture
def untimed(trained, monkeypatch):
    """In a store that has the scenes, and without the steps from which the time of a training is estimated."""
    monkeypatch.setattr(study, "estimate_seconds", lambda recipes: 60.0 * len(recipes))


def test_a_study_with_one_seed_says_what_its_numbers_come_from_and_cost(trained, capsys):
    begun = study.begin(NOTEBOOK, "smoke", "scenes", 1, force=True)
    said = capsys.readouterr().out
    assert "SMOKE: this run shows that the machinery works" in said
    assert "scenes, scale smoke: 160 shared + 80 of 160 pool pairs per model, 1 seed · cpu, fp32, torch" in said
    assert f"commit {study.commit()}\n" in said and "0 of 2 models are in the store; training the others takes" in said
    assert [recipe.seed for recipe in begun.models] == [0, 0] and begun.prepared is prepare(begun.base.data)
    expected = {"dataset": "scenes", "name": "scenes", "scale": "smoke", "seeds": 1, "precision": "fp32"}
    assert expected.items() <= begun.about.items() and begun.about["data"] == begun.prepared.fingerprint
    assert re.fullmatch("[0-9a-f]{16}", begun.about["runs"])
    assert re.fullmatch("[0-9a-f]{10}|unknown", begun.about["claims_commit"])
    assert begun.about["versions"]["numpy"] == np.__version__ and str(ROOT) not in json.dumps(begun.about)
    runs.train_all(begun.models)
    estimate = stats.difference(tables.pool(tables.score_pairs(begun)))
    assert stats.verdict(estimate)[0] == "not testable"
    again = study.begin(NOTEBOOK, "smoke", "scenes", 1)
    assert "2 of 2 models are in the store; nothing to train" in capsys.readouterr().out
    two = study.begin(NOTEBOOK, "smoke", "scenes", 2, force=True)
    assert "0 of 4 models are in the store" in capsys.readouterr().out
    assert again.about["runs"] == begun.about["runs"] != two.about["runs"]


def test_without_git_the_commits_are_unknown(monkeypatch, tmp_path, untimed):
    monkeypatch.setattr(study.store, "ROOT", tmp_path)
    about = study.begin(NOTEBOOK, "smoke", "scenes", 1).about
    assert (about["commit"], about["claims_commit"]) == ("unknown", "unknown")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (("smoke", "scenes", 0), "seeds: expected a whole number of at least 1, got 0"),
        (("smoke", "scenes", "3"), "seeds: .* got '3'"),
        (("smoke", "scenes", 1, "", "", "false"), "force: expected True or False, got 'false'"),
        (("smoke", "scenes", True), "seeds: expected a whole number, got True"),
        (("smoke", "scenes", 1, 5), "captions: expected text .papermill: -r instead of -p., got 5"),
        (("smok", "scenes", 1), "Did you mean 'smoke'"),
    ],
)
def test_bad_parameters_name_what_was_expected(parameters, message, own_store):
    with pytest.raises(ValueError, match=message):
        study.begin(NOTEBOOK, *parameters)
    assert not own_store.exists()


def test_a_misspelt_parameter_of_papermill_is_refused(monkeypatch, own_store):
    cells = ["", "seeds: int = 3  # how often", '# Parameters\nscale = "smoke"\nsedes = 2\n', "sedes"]
    monkeypatch.setattr(study, "get_ipython", lambda: SimpleNamespace(user_ns={"In": cells}))
    with pytest.raises(ValueError, match=r"'sedes' does not exist: .*Did you mean 'seeds'"):
        study.begin(NOTEBOOK, "smoke", "scenes", 3)
    assert not own_store.exists()


def test_without_classes_01_is_refused_and_without_captions_conditions_fall_away(photos, tmp_path, untimed):
    with pytest.raises(DataError, match="notebook 01 trains on class labels and found none"):
        study.begin("01_supervised_vs_ssl", "smoke", photos, 1)
    two = study.begin(FOURTH, "smoke", photos, 1)
    assert set(CONDITIONS[FOURTH](two.base)) - set(two.conditions) == {"5 captions"}
    path = write_parquet(tmp_path / "one.parquet", columns(500, remark=[caption(i) for i in range(500)]))
    one = study.begin(FOURTH, "smoke", path, 1, captions="remark")
    assert [*one.conditions] == [*two.conditions] and one.base == one.conditions["CLIP"]
    assert set(one.models) == set(all_models(one.conditions, [0]))


def test_recipes_have_the_sizes_that_a_small_data_set_allows_and_all_data_are_in_memory(photos, untimed):
    with pytest.warns(UserWarning, match="smaller than asked for"):
        begun = study.begin(FOURTH, "smoke", photos, 1)
    assert [*begun.base.data.sizes().values()] == [114, 114, 57, 142, 71] and begun.base.data == begun.prepared.data
    noisy = begun.conditions["noisy"].data
    assert (noisy.shared, noisy.pool, noisy.external) == (0, 228, 57)
    made = prepare.cache_info().misses
    assert {prepare(recipe.data).data for recipe in begun.models} == {begun.base.data, noisy}
    assert prepare.cache_info().misses == made
    assert study.plan(FOURTH, "smoke", "scenes", "", "")[1]["CLIP"] == at_scale("smoke", "scenes")


def test_a_data_set_that_was_changed_is_read_again(tmp_path, untimed):
    prints = []
    for rows in (750, 760):
        path = write_parquet(tmp_path / "mine.parquet", columns(rows))
        prints.append(study.begin(NOTEBOOK, "smoke", path, 1).prepared.fingerprint)
    assert prints[0] != prints[1]


def test_cost_counts_each_model_once(untimed):
    store.rebuild(time.time() + 60)  # nothing counts as trained
    found = study.cost(["00_tour", NOTEBOOK, THIRD, NOTEBOOK], "smoke", "scenes", 2)
    rest = len(all_models(study.plan(THIRD, "smoke", "scenes", "", "")[1], [0, 1])) - 4
    counts = [("00_tour", 0, 0), (NOTEBOOK, 4, 4), (THIRD, rest, rest), (NOTEBOOK, 0, 0)]
    assert found == [(name, known, absent, study.START + 60 * absent) for name, known, absent in counts]


def test_the_time_grows_with_the_steps_also_where_no_pair_is_shared(trained, monkeypatch):
    monkeypatch.setattr(study, "_step_seconds", lambda recipe: 1.0)
    conditions = study.plan(FOURTH, "smoke", "scenes", "", "")[1]
    plain, noisy, fewer = (conditions[name] for name in ("CLIP", "noisy", "noisy, random"))
    steps = [5 * (240 // 60), 5 * (240 // 60), 8 * (144 // 60)]
    for recipe, own in zip((plain, noisy, fewer), steps, strict=True):
        one = study.estimate_seconds([recipe])
        assert one == pytest.approx(own * study.OVERHEAD / study.side_by_side())
    assert study.estimate_seconds([plain, replace(plain, objective="view")]) == pytest.approx(
        2 * study.estimate_seconds([plain])
    )


def test_what_a_model_costs_is_said_without_reading_any_data(own_store):
    own_store.mkdir()
    said = costs.of_scale("smoke", "nowhere")
    assert re.match(r"smoke, per model: \S+ million weights, 240 pairs, 5 epochs: about 0\.\d hours, ", said), said
    assert "GB on disk, once" in said


def test_a_step_is_timed_for_every_kind_of_recipe(trained):
    conditions = study.plan(FOURTH, "smoke", "scenes", "", "")[1]
    paradigms = study.plan("01_supervised_vs_ssl", "smoke", "scenes", "", "")[1].values()
    sigmoid = replace(conditions["CLIP"], objective="sigmoid", n_captions=5, width=2.0)
    for recipe in (*paradigms, sigmoid, *(conditions[name] for name in ("noisy", "noisy, random"))):
        assert 0 < study.estimate_seconds([recipe]) < 600


def test_the_time_of_a_wide_model_is_not_that_of_a_narrow_one(monkeypatch, trained):
    monkeypatch.setattr(study, "_step_seconds", lambda recipe: recipe.width * recipe.depth * recipe.batch)
    plain = study.plan(NOTEBOOK, "smoke", "scenes", "", "")[1]["CLIP"]
    for change, times in (({"width": 2.0}, 2), ({"depth": 2.0}, 2), ({"batch": 2 * plain.batch}, 1)):
        alone, both = (study.estimate_seconds(some) for some in ([plain], [replace(plain, **change), plain]))
        assert both == pytest.approx((1 + times) * alone)


def modified(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_figures_are_kept_in_the_store_those_with_data_apart(photos, untimed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, names, table = modified(ROOT / "figures"), ["02_line", "02_words", "02_wall"], pd.DataFrame({"x": [1, 2]})
    for dataset, apart in (("scenes", []), (photos, names[1:])):
        begun = study.begin(NOTEBOOK, "smoke", dataset, 1)
        line = plt.figure()
        for _ in range(2):  # a cell that is run again
            begun.keep(line, "line", table)
        assert "SMOKE: machinery only" in [text.get_text() for text in line.texts]
        assert line.get_supxlabel().startswith(begun.about["name"]) and line.get_supxlabel().endswith("fp32.")
        begun.keep(plt.figure(), "words", pd.DataFrame({"remark": [f" {begun.prepared.captions[7][0].upper()}"]}))
        begun.keep(figures.wall(begun.prepared.images[:2], ["a", "b"], ["1", "2"]), "wall", table)
        found = findings.decide("2a", stats.Estimate(0.5, 0.1, 0.9, 1, 40, 0.02, 0.3), begun.about)
        shown = begun.finish([found])
        assert shown.loc["2a", ["claim", "value", "verdict"]].tolist() == [found.claim, 0.5, "not judged"]
        results = findings.results_folder(dataset, "smoke")
        kept, private = names[: 3 - len(apart)], results.parent.parent / "private" / results.name
        assert findings.read_results(results / f"{NOTEBOOK}.json")["figures"] == kept and not plt.get_fignums()
        assert {path.stem for path in results.glob("*.png")} == set(kept)
        assert {path.stem for path in private.glob("*.png")} == set(apart)
    assert modified(ROOT / "figures") == before and not list(tmp_path.iterdir())  # nothing is written elsewhere
