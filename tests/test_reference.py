"""What is committed under figures/: whoever recomputes a headline number from the CSV beside it gets the same one."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from lib import stats, tables
from lib.companion import findings

FOLDERS = sorted(path.parent for path in ROOT.glob("figures/*-*/findings.json"))
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def table(folder, name):
    return findings.read_table(folder, name)


def over_seeds(rows, statistic):
    """Mean over seeds of a statistic of one seed's rows."""
    return sum(statistic(part) for _, part in rows.groupby("seed")) / rows["seed"].nunique()


def gap(name, by, first, second, column="value", where="index == index"):
    """Return a function that takes a folder's mean of a column in two groups, and subtracts the second."""

    def value(folder):
        means = table(folder, name).query(where).groupby(by)[column].mean()
        return means[first] - means[second]

    return value


# --- finding 1 ---
def unitmem(layer, first, second):
    return gap("01_layers", "objective", first, second, where=f"score == 'unitmem' and layer == layer.{layer}()")


def at_equal(history, value, first, second, share=1.0):
    """Return a value of one model minus that of another where both first reach a share of the weaker one's best."""
    history = history.rename(columns={"objective": "condition", "bits": "probe"})
    both = history[history["condition"].isin([first, second])]
    means = tables.at_matched_utility(both, value, share).groupby("condition")[value].mean()
    return means[first] - means[second]


def matched(folder):
    rows = table(folder, "01_along_training")
    (value,) = (name for name in rows if name.startswith("unitmem"))
    return at_equal(rows, value, "CLIP", "self-supervised")


def step(folder, first, second):
    rows = table(folder, "01_which_pairs").query("corruption == 'swapped' and mislabelled")
    return stats.mean(rows.assign(gap=rows[f"{first}_rank"] - rows[f"{second}_rank"]), "gap")


def across(a, b):
    """Return the mean rank correlation of two tables, a column per seed, between different seeds."""
    return np.mean([spearmanr(a[s], b[t])[0] for s in a for t in b if s != t])


def agreement(folder):
    rows = table(folder, "01_which_pairs")
    a, b = (rows.pivot(index="pair_id", columns="seed", values=name) for name in ("CLIP", "supervised"))
    return across(a, b) / np.prod([max(across(one, one), 1e-3) for one in (a, b)]) ** 0.5


# --- finding 2 ---
def clipmem(first, second="clean", by="corruption", where="subset == 'pool'"):
    return gap("02_wrong_captions", by, first, second, "clipmem", where)


def over_baselines(folder):
    rows = table(folder, "02_detection").query("model == 'trained on the pair'").set_index("name")["value"]
    return rows["CLIPMem"] - rows.drop("CLIPMem").max()


def trend(column, where):
    def value(folder):
        rows = table(folder, "02_wrong_captions").query("subset == 'pool'").query(where)
        return over_seeds(rows, lambda part: spearmanr(part[column], part["clipmem"])[0])

    return value


def single_types(folder):
    truth, rows = pd.read_parquet(folder / "scores" / "data-1400-1200-0.2.parquet"), table(folder, "02_wrong_captions")
    kind = pd.MultiIndex.from_frame(truth[["label", "rarity"]])
    single = set(truth.loc[~kind.isin(kind[truth["subset"] == "shared"]), "pair_id"])
    rows = rows.query(CLEAN).assign(single=lambda one: one["pair_id"].isin(single))
    means, level = rows.groupby(["seed", "single"])["clipmem"].mean().unstack(), rows.groupby("seed")["clipmem"].mean()
    return ((means[True] - means[False]) / level).mean()


def in_other_words(folder):
    rows = table(folder, "02_wording").query("corruption == 'clean'")
    return (rows["others"] / rows["trained"]).mean()


def area(part, values):
    return roc_auc_score(part["corruption"] == "swapped", values)


def weighted_detector(folder):
    rows = table(folder, "02_wrong_captions").query("subset == 'pool' and corruption in ('swapped', 'clean')")
    return over_seeds(rows, lambda one: area(one, one["in"] / 2 - one["out"]) - area(one, one["clipmem"]))


def repeatable(folder):
    wide = table(folder, "02_wrong_captions").query(CLEAN).pivot(index="pair_id", columns="seed", values="clipmem")
    return across(wide, wide) - 0.5


# --- findings 3, 4 and 6 ---
def at_equal_loss(folder):
    rows, gaps = table(folder, "03_retrained").query("subset == 'pool'"), []
    for _, one in rows.groupby("seed"):
        curves = {name: one[one["condition"] == f"{name} retrained"].sort_values("epoch") for name in ("text", "image")}
        level = max(curve["loss"].min() for curve in curves.values())
        found = {n: np.interp(-level, -c["loss"].cummin(), c["clipmem"]) for n, c in curves.items()}
        gaps.append(found["text"] - found["image"])
    return np.mean(gaps)


def lead(folder):
    rows = table(folder, "03_lead").set_index(["captions", "seed"])
    leads = (rows["text_part"] - rows["image_part"]) / rows["clipmem"]
    return (leads["as they are"] - leads["words dropped"]).mean()


def longest(folder):
    """5 captions minus CLIP, where both train for longest."""
    rows = table(folder, "04_captions").set_index("name")["u"]
    (one,), (five,) = ([*rows.filter(regex=f"^{name}, .* epochs").index] or [name] for name in ("CLIP", "5 captions"))
    return rows[five] - rows[one]


def against_more_pairs(folder):
    rows = table(folder, "04_captions").set_index("name")["m"]
    return np.log(rows["5 captions"] / rows.filter(like="pairs").item())


def less_sure(claim, condition):
    """Which of the two is published: the drop of CLIPMem, or the gain in retrieval?"""

    def value(folder):
        rows = table(folder, "04_frontier").set_index("name")[["m", "u"]]
        drop, gain = (rows.loc["CLIP"] - rows.loc[condition]) * [1, -1]
        (entry,) = (e for e in json.loads((folder / "findings.json").read_text()) if e["finding"] == claim)
        return drop if "drop of CLIPMem)" in entry["statistic"] else gain

    return value


def over_short_training(folder):
    rows, gains = table(folder, "04_against_early_stopping"), []
    for _, one in rows.groupby("seed"):
        curve, five = one[one["condition"].str.startswith("CLIP")].sort_values("clipmem"), one.set_index("condition")
        line = [0.0, *curve["clipmem"]], [1 / np.log(2), *curve["bits"]]  # before training: a random order
        gains.append(five["bits"]["5 captions"] - np.interp(five["clipmem"]["5 captions"], *line))
    return np.mean(gains)


def better_detector(folder):
    rows = table(folder, "06_loss").query("corruption in ('swapped', 'clean')")
    return over_seeds(rows, lambda one: area(one, one["clipmem_clip"]) - area(one, one["clipmem_siglip"]))


def exponent(by, most=np.inf):
    """Return a function that fits the exponent of a column, pairs or epochs, to the mean of each size."""

    def value(folder):
        means = table(folder, "06_size").groupby(["epochs", "pairs"], as_index=False)["clipmem"].mean()
        means = np.log(means[means["epochs"] <= most])
        return np.polyfit(means[by], means["clipmem"], 1)[0]

    return value


CLEAN = "subset == 'pool' and corruption == 'clean'"
NOISY = "text noise 0.2 (clean pairs)"
HEADLINES = {
    "1a": unitmem("max", "supervised", "CLIP"),
    "1b": unitmem("max", "CLIP", "self-supervised"),
    "1c": unitmem("min", "self-supervised", "CLIP"),
    "1d": matched,
    "1e": lambda folder: step(folder, "CLIP", "self-supervised").value,
    "1h": agreement,
    "1i": lambda f: stats.weaker(step(f, "CLIP", "self-supervised"), step(f, "supervised", "CLIP")).value,
    "2a": clipmem("swapped"),
    "2b": over_baselines,
    "2d": trend("share_swapped", "corruption == 'partly_swapped'"),
    "2f": trend("vagueness", "corruption == 'clean' and vagueness <= 0.5"),
    "2g": trend("vagueness", "corruption == 'clean' and vagueness >= 0.5"),
    "2h": single_types,
    "2i": clipmem("inverted"),
    "2l": clipmem("swapped", "inverted"),
    "2m": gap("02_wrong_captions", "corruption", "swapped", "clean", "in", "subset == 'pool'"),
    "2n": gap("02_wrong_captions", "corruption", "clean", "swapped", "out", "subset == 'pool'"),
    "2o": in_other_words,
    "2p": weighted_detector,
    "2q": repeatable,
    "2j": clipmem("swapped", where="subset == 'pool' and not mislabelled"),
    "3a": gap("03_swap", "encoder", "text", "image", where="subset == 'pool' and corruption == 'all kinds'"),
    "3b": at_equal_loss,
    "3c": gap("03_disturbed", "name", "image augmented", "tokens dropped", where="pairs == 'all pairs'"),
    "3d": gap("03_disturbed", "name", "image noise 0.2", "text noise 0.2", where="pairs == 'clean pairs'"),
    "3e": gap("03_captions", "read", "trained caption", "other captions", where=CLEAN),
    "3f": lead,
    "3g": gap("03_sslmem", "encoder", "text", "image", where="corruption == 'all kinds'"),
    "4b": longest,
    "4c": gap("04_frontier", "name", "5 captions", "CLIP", "probe"),
    "4d": against_more_pairs,
    "4e": over_short_training,
    "4f": lambda folder: table(folder, "04_units").set_index(["name", "score"])["value"][NOISY, "range-normalised"],
    "4g": gap("04_frontier", "name", "text noise 0.2", "CLIP", "u"),
    "4h": gap("04_range", "score", "range-normalised", "raw", where="name.str.startswith('text noise')"),
    "4i": gap("04_removal", "rule", "clipmem", "nothing", "value_bits"),
    "4j": gap("04_removal", "rule", "clipmem", "early loss", "value_bits"),
    "4k": gap("04_removal", "rule", "clipmem", "held-out similarity", "value_bits"),
    "4l": less_sure("4l", "tokens dropped"),
    "4m": gap("04_frontier", "name", "CLIP", "text noise 0.2", "m_clean"),
    "4o": less_sure("4o", "image augmented"),
    "6b": gap("06_loss", "corruption", "swapped", "clean", "clipmem_siglip"),
    "6c": better_detector,
    "6d": lambda f: at_equal(table(f, "06_matched"), "relative", "CLIP", "SigLIP", share=0.95),
    "6e": gap("06_towers", "condition", "double width", "half width", "clipmem"),
    "6g": exponent("pairs"),
    "6r": lambda folder: exponent("epochs", most=4)(folder) - 1,
}


@each_folder
def test_headlines_follow_from_the_committed_tables(folder):
    found = {entry["finding"]: entry for entry in json.loads((folder / "findings.json").read_text())}
    assert found and {name for name in found if "withdrawn" not in findings.claims()[name]} <= HEADLINES.keys()
    for name in HEADLINES.keys() & found.keys():
        if found[name]["value"] is not None:
            assert HEADLINES[name](folder) == pytest.approx(found[name]["value"], abs=2e-3), name


@each_folder
def test_every_figure_has_its_table_and_its_provenance(folder):
    for picture in folder.glob("*.png"):
        about = json.loads(picture.with_suffix(".json").read_text())
        content = picture.with_suffix(".csv").read_bytes()
        assert about["csv_sha256"] == hashlib.sha256(content).hexdigest() and picture.with_suffix(".pdf").is_file()
        entries = json.loads((folder / "findings.json").read_text())
        for behind in [e for e in entries if e["notebook"] == about["notebook"]]:  # none of notebook 05
            assert about["seeds"] >= 3 and about["runs"] == behind["runs"]


@each_folder
def test_claims_tests_and_margins_are_those_of_the_commit_with_which_the_published_models_were_trained(folder):
    found, index = json.loads((folder / "findings.json").read_text()), folder / "scores" / "index.json"
    models = json.loads(index.read_text())["models"] if index.is_file() else []
    for notebook, commit in {(one["notebook"], one["commit"]) for one in models}:
        if (before := findings.git("show", f"{commit}:lib/companion/claims.json")) == "unknown":
            pytest.skip("the project's history is not here")
        for name in [entry["finding"] for entry in found if entry["notebook"] == notebook]:
            old, new = json.loads(before)[name], findings.claims()[name]
            assert all(old.get(part) == new.get(part) for part in old.keys() | new.keys() if part != "power"), name


def test_nothing_of_a_data_set_that_may_not_be_redistributed_is_committed():
    for path in ROOT.glob("figures/*/*.csv"):
        if not path.parent.name.startswith("scenes-"):
            captions = pd.read_csv(path).get("caption", pd.Series(dtype=float))
            assert pd.api.types.is_numeric_dtype(captions) and not path.stem.endswith("wall"), path
