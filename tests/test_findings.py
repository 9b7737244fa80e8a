"""Findings: recorded by this very run, compared with the reference, published on conditions, shown in README."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from lib import findings
from lib.findings import FindingsError
from lib.stats import Estimate

NOTEBOOK = "02_miscaptioned_memorization"
ABOUT = {"notebook": NOTEBOOK, "dataset": "scenes", "name": "scenes", "scale": "laptop", "seeds": 3, "commit": "abc"}
ABOUT |= {"run_keys": ["k1", "k2"]}


def finding(name="2a", **changes):
    estimate = Estimate(0.25, 0.1, 0.4, 3, 100)
    return replace(findings.decide(name, "swapped > clean", "difference", estimate, ABOUT), **changes)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project, and one figure among its results."""
    monkeypatch.setattr(findings, "ROOT", tmp_path / "project")
    (tmp_path / "project" / "figures").mkdir(parents=True)
    shutil.copy(findings.store.ROOT / "figures" / "paper.json", tmp_path / "project" / "figures")
    folder = findings.results_folder("scenes", "laptop")
    folder.mkdir(parents=True)
    for ending in findings.ENDINGS:
        (folder / f"02_a{ending}").write_text(ending)
    return tmp_path / "project"


def test_the_results_are_those_of_this_very_run(root, monkeypatch):
    monkeypatch.setenv("CLIPMEM_RUN_ID", "run-7")
    path = findings.record(NOTEBOOK, [finding()], ["02_a"], ABOUT)
    found = findings.read_results(path)
    assert path == findings.results_folder("scenes", "laptop") / f"{NOTEBOOK}.json"
    assert (found["run_id"], found["figures"]) == ("run-7", ["02_a"])
    assert found["findings"]["verdict"].tolist() == ["reproduced"]
    with pytest.raises(FindingsError, match=r"02_b\.png: declared, but not saved"):
        findings.record(NOTEBOOK, [finding()], ["02_b"], ABOUT)
    assert not list(root.glob("figures/*/")), "a reader's run never touches the reference"


def test_smoke_decides_nothing_and_what_is_not_finite_becomes_null(root):
    smoke = {**ABOUT, "scale": "smoke"}
    assert findings.decide("2a", "c", "s", Estimate(0.25, 0.1, 0.4, 3, 100), smoke).verdict == findings.NOT_JUDGED
    broken = findings.decide("2a", "c", "s", Estimate(np.float64("nan"), -np.inf, np.inf, np.int64(3), 100), ABOUT)
    path = findings.record(NOTEBOOK, [broken], [], ABOUT)
    assert '"value": null' in path.read_text() and findings.read_results(path)["findings"]["low"].isna().all()


def test_two_data_sets_never_share_a_folder_of_results():
    x, y = (findings.results_folder(f"{folder}/photos.v2.parquet", "laptop") for folder in ("x", "y"))
    assert x != y and findings.reference_folder("x/photos.v2.parquet", "laptop").name == "photos-v2-laptop"
    assert findings.reference_folder("x/scenes.parquet", "laptop") != findings.reference_folder("scenes", "laptop")


def test_compare_counts_the_claims_that_are_in_both(root):
    here = [finding("2a"), finding("2d", verdict="direction only"), finding("2x"), finding("3a", value=np.nan)]
    there = [finding("2a", value=0.2504), finding("2d", value=0.2501), finding("3a"), finding("4a")]
    here, there = (pd.DataFrame([asdict(item) for item in items]) for items in (here, there))
    sentence = "3 claims: 2 verdicts as in the reference, 1 differs (2d); largest difference 0.0004 (2a)."
    assert findings.compare(here, there) == sentence
    assert findings.compare(there, there).startswith("4 claims: 4 verdicts as in the reference; largest difference 0 (")
    assert findings.compare(here.tail(0), there) == "The reference has none of these claims."


def test_publish_replaces_what_the_reference_held_of_a_notebook(root):
    reference = findings.reference_folder("scenes", "laptop")
    reference.mkdir()
    old = [asdict(finding(notebook="03_x", value=None)), asdict(finding("2b"))]
    (reference / "findings.json").write_text(json.dumps(old))
    for name in ("02_renamed.png", "03_b.png"):
        (reference / name).touch()
    findings.record(NOTEBOOK, [finding("2a")], ["02_a"], ABOUT)
    findings.record("00_tour", [], [], {"dataset": "scenes", "scale": "laptop"})
    assert findings.publish("scenes", "laptop", ["00_tour", NOTEBOOK]) == reference
    files = {f"02_a{ending}" for ending in findings.ENDINGS} | {"findings.json", "03_b.png"}
    assert {path.name for path in reference.iterdir()} == files
    assert findings.read_reference(reference)["finding"].tolist() == ["2a", "2a"]
    assert "NaN" not in (reference / "findings.json").read_text()
    assert "| 2a | swapped > clean |" in (root / "figures" / "README.md").read_text()


REFUSED = {
    "smoke decides nothing": {"scale": "smoke"},
    "2 seeds are too few": {"seeds": 2},
    r"from commit abc\+": {"commit": "abc+"},
    "from commit unknown": {"commit": "unknown"},
    r"different commits \(abc, def\)": {"commit": "def"},
    f"{NOTEBOOK}.json is missing: run notebook": {"notebook": "04_y"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_publish_refuses(root, reason):
    about = {**ABOUT, **REFUSED[reason]}
    findings.record(about["notebook"], [finding()], [], about)
    findings.record("03_x", [finding()], [], {**about, "commit": about["commit"].replace("def", "abc")})
    with pytest.raises(FindingsError, match=reason):
        findings.publish("scenes", about["scale"], [NOTEBOOK, "03_x"])
    assert not list(root.glob("figures/*/"))


@pytest.mark.parametrize("content", ["", "[{", "{}x", "3", '[{"claim": "x"}]', "[3]", '["a"]', "null"])
def test_a_damaged_file_is_named(root, content):
    reference = findings.reference_folder("scenes", "laptop")
    reference.mkdir()
    (reference / "findings.json").write_text(content)
    with pytest.raises(FindingsError, match=f"{reference}/findings.json is damaged: restore it with git"):
        findings.page()
    path = findings.results_folder("scenes", "laptop") / f"{NOTEBOOK}.json"
    path.write_text(content)
    with pytest.raises(FindingsError, match=f"{NOTEBOOK}.json is damaged: run notebook {NOTEBOOK} again"):
        findings.read_results(path)


def test_the_page_shows_what_the_paper_reports_and_how_to_repeat_ours(root):
    reference = findings.reference_folder("flickr8k", "laptop")
    reference.mkdir()
    rows = [finding(claim="a|b", dataset="flickr8k"), finding("2c", dataset="coco12k", low=None)]
    (reference / "findings.json").write_text(json.dumps([asdict(row) for row in rows]))
    text = findings.page()
    assert "a\\|b" in text and "above .89" in text and "**reproduced**" in text
    assert "0.250 [0.100, 0.400]" in text and "0.250 [—, 0.400]" in text
    assert "--only 02 --dataset flickr8k`" in text and "--dataset coco12k.parquet`" in text


def test_the_committed_page_is_not_stale():
    assert (findings.ROOT / "figures" / "README.md").read_text() == findings.page()
