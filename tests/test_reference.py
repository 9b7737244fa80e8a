"""What is committed under figures/: whoever recomputes a headline number from the CSV beside it gets the same one."""

import hashlib
import json

import pandas as pd
import pytest
from conftest import ROOT
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

FOLDERS = sorted(
    path.parent for path in ROOT.glob("figures/*-*/findings.json") if not path.parent.name.endswith("-smoke")
)


def over_seeds(table, statistic):
    """Mean over seeds of a statistic of one seed's rows."""
    return sum(statistic(part) for _, part in table.groupby("seed")) / table["seed"].nunique()


def difference(part):
    means = part.groupby("kind")["clipmem"].mean()
    return means["wrong"] - means["clean"]


def gain(part):
    part = part[part["kind"] != "dosed"]
    wrong = part["kind"] == "wrong"
    free = {"similarity_g": -1, "similarity_f": -1, "loss_f": 1}
    best = max(roc_auc_score(wrong, sign * part[score]) for score, sign in free.items())
    return roc_auc_score(wrong, part["clipmem"]) - best


def rank_correlation(column, kinds):
    return lambda part: spearmanr(*part.loc[part["kind"].isin(kinds), ["clipmem", column]].to_numpy().T)[0]


HEADLINES = {
    "2a": difference,
    "2b": gain,
    "2c": rank_correlation("dose", ["clean", "dosed", "wrong"]),
    "2e": rank_correlation("vagueness", ["clean"]),
    "2f": rank_correlation("rarity", ["clean"]),
}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_headlines_follow_from_the_committed_table(folder):
    found = {entry["finding"]: entry for entry in json.loads((folder / "findings.json").read_text())}
    table = pd.read_csv(folder / "02_wrong_captions.csv")
    assert {"2a", "2b", "2c", "2d"} <= set(found)
    for name in HEADLINES.keys() & found.keys():
        assert over_seeds(table, HEADLINES[name]) == pytest.approx(found[name]["value"], abs=2e-3), name
    over = table[table["kind"] == "clean"]["clipmem"].mean() - table["null"].quantile(0.975)
    assert over == pytest.approx(found["2d"]["value"], abs=2e-3)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_figure_has_its_table_and_its_provenance(folder):
    for picture in folder.glob("*.png"):
        about = json.loads(picture.with_suffix(".json").read_text())
        content = picture.with_suffix(".csv").read_bytes()
        assert about["csv_sha256"] == hashlib.sha256(content).hexdigest() and picture.with_suffix(".pdf").is_file()
        assert about["seeds"] >= 3 and len(about["run_keys"]) == 2 * about["seeds"] + 1


def test_nothing_of_a_data_set_that_may_not_be_redistributed_is_committed():
    for table in ROOT.glob("figures/*/*.csv"):
        if not table.parent.name.startswith("scenes-"):
            assert "caption" not in pd.read_csv(table, nrows=1) and not table.stem.endswith("wall"), table


def test_both_reference_runs_are_there():
    assert {"scenes-laptop", "flickr8k-laptop"} <= {folder.name for folder in FOLDERS}
