"""How a notebook begins and ends: what it says and refuses, what it keeps, and where."""

import json
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from photo_sets import caption, columns, write_parquet

from lib import figures, findings, runs, stats, store, study, tables
from lib.captions import DataError
from lib.recipes import CONDITIONS, all_models

THIRD, NOTEBOOK = "03_encoder_attribution", "02_miscaptioned_memorization"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise with two captions each, and no classes."""
    return write_parquet(tmp_path_factory.mktemp("photos") / "mine.parquet", columns(500))


@pytest.fixture
def untimed(trained, monkeypatch):
    """In a store that has the scenes, and without the steps from which the time of a training is estimated."""
    monkeypatch.setattr(study, "estimate_seconds", lambda recipes, prepared: 60.0 * len(recipes))


def test_a_study_with_one_seed_says_what_its_numbers_come_from_and_cost(trained, capsys):
    begun = study.begin(NOTEBOOK, "smoke", "scenes", 1, force=True)
    said = capsys.readouterr().out
    assert "SMOKE: this run shows that the machinery works" in said
    assert "scenes, scale smoke: 160 shared + 80 candidate or independent pairs per model, 1 seed · cpu, fp32" in said
    assert f"commit {study.commit()}\n" in said and "0 of 3 models are in the store; training the others takes" in said
    assert [recipe.seed for recipe in begun.models] == [0, 0, 1] and begun.noise_floor == begun.models[2]
    expected = {"dataset": "scenes", "name": "scenes", "scale": "smoke", "seeds": 1, "precision": "fp32"}
    assert expected.items() <= begun.about.items() and begun.about["data"] == begun.prepared.fingerprint
    assert begun.about["run_keys"] == sorted(runs.run_key(recipe, begun.prepared) for recipe in begun.models)
    assert begun.about["versions"]["numpy"] == np.__version__ and str(ROOT) not in json.dumps(begun.about)
    runs.train_all(begun.models, begun.prepared)
    pairs = tables.candidates(tables.score_pairs(begun, noise_floor=True))
    assert stats.verdict(stats.difference(pairs)) == "not testable at this scale"
    study.begin(NOTEBOOK, "smoke", "scenes", 1)
    assert "3 of 3 models are in the store; nothing to train" in capsys.readouterr().out
    study.begin(NOTEBOOK, "smoke", "scenes", 1, force=True)
    assert "0 of 3 models are in the store" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (("smoke", "scenes", 0), "seeds: expected a whole number of at least 1, got 0"),
        (("smoke", "scenes", "3"), "seeds: .* got '3'"),
        (("smoke", "scenes", 1, "", "", "false"), "force: expected True or False, got 'false'"),
        (("smok", "scenes", 1), "Did you mean 'smoke'"),
    ],
)
def test_bad_parameters_name_what_was_expected(parameters, message, own_store):
    with pytest.raises(ValueError, match=message):
        study.begin(NOTEBOOK, *parameters)
    assert not own_store.exists()


def test_without_classes_01_is_refused_and_without_captions_conditions_fall_away(photos, tmp_path, untimed):
    two = study.begin(THIRD, "smoke", photos, 1)
    whole = CONDITIONS[THIRD](two.base)
    assert set(whole) - set(two.conditions) == {"other captions"} and two.base == two.conditions["CLIP"]
    with pytest.raises(DataError, match="notebook 01 trains on class labels and found none"):
        study.begin("01_supervised_vs_ssl", "smoke", photos, 1)
    path = write_parquet(tmp_path / "one.parquet", columns(500, remark=[caption(i) for i in range(500)]))
    one = study.begin("04_mitigation_utility", "smoke", path, 1, captions="remark")
    assert not [name for name in one.conditions if "captions" in name]
    assert set(one.models) == set(all_models(one.conditions, [0]))


def test_cost_counts_each_model_once(untimed):
    store.rebuild(time.time() + 60)  # nothing counts as trained
    found = study.cost(["00_tour", NOTEBOOK, THIRD, NOTEBOOK], "smoke", "scenes", 2)
    rest = len(all_models(study.plan(THIRD, "smoke", "scenes", "", "")[1], [0, 1])) - 5
    counts = [("00_tour", 0, 0), (NOTEBOOK, 5, 5), (THIRD, rest, rest), (NOTEBOOK, 0, 0)]
    assert found == [(name, known, absent, study.START + 60 * absent) for name, known, absent in counts]


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
        assert {text.get_text() for text in line.texts} == {"SMOKE: machinery only"}
        begun.keep(plt.figure(), "words", pd.DataFrame({"remark": [f" {begun.prepared.captions[7][0].upper()}"]}))
        begun.keep(figures.wall(begun.prepared.images[:2], ["a", "b"], ["1", "2"]), "wall", table)
        estimate = stats.Estimate(0.5, 0.1, 0.9, 1, 40)
        shown = begun.finish([findings.decide("2a", "more", "CLIPMem", estimate, begun.about)])
        assert shown.loc["2a", ["claim", "value", "verdict"]].tolist() == ["more", 0.5, "not judged"]
        results = findings.results_folder(dataset, "smoke")
        kept, private = names[: 3 - len(apart)], results.parent.parent / "private" / results.name
        assert findings.read_results(results / f"{NOTEBOOK}.json")["figures"] == kept and not plt.get_fignums()
        assert {path.stem for path in results.glob("*.png")} == set(kept)
        assert {path.stem for path in private.glob("*.png")} == set(apart)
    assert modified(ROOT / "figures") == before and not list(tmp_path.iterdir())  # nothing is written elsewhere
