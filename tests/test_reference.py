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
    means = part.groupby("corruption")["clipmem"].mean()
    return means["swapped"] - means["clean"]


def inverted_difference(part):
    means = part.groupby("corruption")["clipmem"].mean()
    return means["inverted"] - means["clean"]


def gain(part):
    part = part[part["corruption"].isin(["clean", "swapped"])]
    swapped = part["corruption"] == "swapped"
    baselines = {"similarity_g": -1, "similarity_f": -1, "loss_f": 1}
    best = max(roc_auc_score(swapped, sign * part[score]) for score, sign in baselines.items())
    return roc_auc_score(swapped, part["clipmem"]) - best


def rank_correlation(column, *corruptions):
    return lambda part: spearmanr(*part.loc[part["corruption"].isin(corruptions), ["clipmem", column]].to_numpy().T)[0]


def layer_gap(a, b):
    def value(folder):
        ends = pd.read_csv(folder / "01_layers.csv").query("score == 'unitmem'")
        ends = ends[ends["layer"] == ends["layer"].max()].set_index("paradigm")["value"]
        return ends[a] - ends[b]

    return value


def rank_gap(group, a, b):
    def value(folder):
        direct = pd.read_csv(folder / "01_which_pairs.csv")
        chosen = direct[direct["mislabelled"] if group == "swapped" else direct["corruption"] == group]
        return (chosen[f"{a}_rank"] - chosen[f"{b}_rank"]).mean()

    return value


def between(folder):
    direct = pd.read_csv(folder / "01_which_pairs.csv")
    gaps = []
    for _, one in direct.groupby("seed"):
        tau = one[["label", "caption", "view"]].corr("kendall")
        gaps.append(min(tau.loc["label", "caption"], tau.loc["caption", "view"]) - tau.loc["label", "view"])
    return sum(gaps) / len(gaps)


def condition_gap(a, b):
    def value(folder):
        means = pd.read_csv(folder / "03_interventions.csv").groupby("condition")["clipmem"].mean()
        return means[a] - means[b]

    return value


def encoder_gap(condition):
    def value(folder):
        table = pd.read_csv(folder / "03_encoders.csv").set_index("condition").loc[condition]
        return (table["text"] - table["image"]).mean()

    return value


def fall(name):
    def value(folder):
        means = pd.read_csv(folder / "04_sweeps.csv").set_index("name")["m"]
        return means["CLIP"] - means[name]

    return value


def utility_gap(name, than="CLIP"):
    def value(folder):
        entries = json.loads((folder / "findings.json").read_text())
        measure = next(e["statistic"] for e in entries if e["finding"] == "4d").split(",")[0]
        means = pd.read_csv(folder / "04_removal.csv").groupby("condition")[measure].mean()
        return means[name] - means[than]

    return value


def range_effect(folder):
    table = pd.read_csv(folder / "04_range.csv").query("condition == 'noise after 0.05'")
    return (table["clipmem_normalised"] - table["clipmem"]).mean()


OTHERS = {
    "1a": layer_gap("label", "caption"),
    "1b": layer_gap("caption", "view"),
    "1c": rank_gap("swapped", "caption", "view"),
    "1d": rank_gap("inverted", "caption", "label"),
    "1e": between,
    "3a": encoder_gap("CLIP"),
    "3b": condition_gap("text retrained", "image retrained"),
    "3c": condition_gap("fall, words dropped, matched", "fall, images, matched to words dropped"),
    "3d": condition_gap("fall, text noise", "fall, image noise"),
    "3e": encoder_gap("narrow image tower"),
    "3f": encoder_gap("narrow text tower"),
    "4a": fall("5 captions"),
    "4b": utility_gap("5 captions"),
    "4c": fall("noise before 0.15"),
    "4d": utility_gap("noise before 0.15"),
    "4e": range_effect,
    "4f": utility_gap("5% removed by clipmem"),
    "4g": utility_gap("5% removed by clipmem", "5% removed by random"),
}
HEADLINES = {
    "2a": difference,
    "2b": gain,
    "2c": rank_correlation("share_swapped", "clean", "partly_swapped", "swapped"),
    "2e": rank_correlation("vagueness", "clean"),
    "2g": inverted_difference,
    "2f": rank_correlation("rarity", "clean"),
}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_headlines_follow_from_the_committed_table(folder):
    found = {entry["finding"]: entry for entry in json.loads((folder / "findings.json").read_text())}
    assert found and set(found) <= OTHERS.keys() | HEADLINES.keys() | {"2d"}
    for name in OTHERS.keys() & found.keys():
        assert OTHERS[name](folder) == pytest.approx(found[name]["value"], abs=2e-3), name
    if not any(name.startswith("2") for name in found):
        return
    table = pd.read_csv(folder / "02_wrong_captions.csv")
    assert {"2a", "2b", "2c", "2d"} <= set(found)
    for name in HEADLINES.keys() & found.keys():
        assert over_seeds(table, HEADLINES[name]) == pytest.approx(found[name]["value"], abs=2e-3), name
    over = table[table["corruption"] == "clean"]["clipmem"].mean() - table["noise_floor"].quantile(0.975)
    assert over == pytest.approx(found["2d"]["value"], abs=2e-3)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_figure_has_its_table_and_its_provenance(folder):
    for picture in folder.glob("*.png"):
        about = json.loads(picture.with_suffix(".json").read_text())
        content = picture.with_suffix(".csv").read_bytes()
        assert about["csv_sha256"] == hashlib.sha256(content).hexdigest() and picture.with_suffix(".pdf").is_file()
        entries = json.loads((folder / "findings.json").read_text())
        behind = next(e for e in entries if e["notebook"] == about["notebook"])
        assert about["seeds"] >= 3 and about["run_keys"] == behind["run_keys"] and len(behind["run_keys"]) >= 7


def test_nothing_of_a_data_set_that_may_not_be_redistributed_is_committed():
    for table in ROOT.glob("figures/*/*.csv"):
        if not table.parent.name.startswith("scenes-"):
            captions = pd.read_csv(table).get("caption", pd.Series(dtype=float))
            assert pd.api.types.is_numeric_dtype(captions) and not table.stem.endswith("wall"), table


def test_the_reference_runs_are_there():
    done = {folder.name: {path.name[:2] for path in folder.glob("*.csv")} for folder in FOLDERS}
    assert done["scenes-laptop"] == {"01", "02", "03", "04"}
    assert done["flickr8k-laptop"] >= {"02", "04"} and done["coco12k-laptop"] >= {"01"}
