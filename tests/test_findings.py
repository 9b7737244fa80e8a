"""Findings: recorded by this very run, compared with the reference, published on conditions."""

import hashlib
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
ABOUT |= {"runs": "k1", "claims_commit": "def"}
ESTIMATE = Estimate(0.25, 0.1, 0.4, 3, 100, p=0.0123456789, detectable=0.2)


def finding(name="2a", **changes):
    return replace(findings.decide(name, ESTIMATE, ABOUT), **changes)


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
    digest = hashlib.sha256(b".csv").hexdigest()
    (folder / "02_a.json").write_text(json.dumps({"csv_sha256": digest}))
    return tmp_path / "project"


def test_the_results_are_those_of_this_very_run(root, monkeypatch):
    monkeypatch.setenv("CLIPMEM_RUN_ID", "run-7")
    path = findings.record(NOTEBOOK, [finding()], ["02_a"], ABOUT)
    found = findings.read_results(path)
    assert path == findings.results_folder("scenes", "laptop") / f"{NOTEBOOK}.json"
    assert (found["run_id"], found["figures"]) == ("run-7", ["02_a"])
    assert found["findings"]["verdict"].tolist() == ["reproduced"]
    assert not list(root.glob("figures/*/")), "a reader's run never touches the reference"


def test_a_finding_has_its_words_and_side_from_the_claims_and_says_why_it_cannot_be_tested():
    found, entry = finding("2a"), findings.claims()["2a"]
    assert (found.claim, found.statistic) == (entry["claim"], entry["statistic"]) and found.reason == ""
    assert (found.p, found.detectable, found.runs, found.claims_commit) == (0.0123457, 0.2, "k1", "def")
    assert findings.claims()["2g"]["side"] == "below" and finding("2g").verdict == "contradicted"
    assert findings.decide("2b", ESTIMATE, ABOUT, detail="final loss").statistic.endswith(
        "in-sample score (final loss)"
    )
    gated = findings.decide("1e", ESTIMATE, ABOUT, gate="the control fails")
    assert (gated.verdict, gated.reason, gated.value) == ("not testable", "the control fails", 0.25)
    few = findings.decide("2a", replace(ESTIMATE, seeds=1), ABOUT)
    assert few.verdict == "not testable" and "seed" in few.reason
    with pytest.raises(FindingsError, match=r"claim_id: expected one of 1a, 1b.*got '9z'"):
        findings.decide("9z", ESTIMATE, ABOUT)


def test_every_claim_is_complete_and_shown_by_number():
    for name, entry in findings.claims().items():
        assert entry.keys() == {"claim", "statistic", "test", "side", "paper"} and entry["side"] in ("above", "below")
        assert all(entry[part] for part in ("claim", "statistic", "test")) and name[0] in "12346", name
    words = [entry["claim"] for entry in findings.claims().values()]
    assert len(set(words)) == len(words)
    table = findings.claims_table("03")
    assert table.index.tolist() == ["3a", "3b", "3c", "3d", "3e"]
    assert [*table] == ["claim", "reproduced when", "the paper"]
    assert table.loc["3a", "reproduced when"] == findings.claims()["3a"]["test"] and table.equals(
        findings.claims_table("3")
    )


def test_smoke_decides_nothing_and_what_is_not_finite_becomes_null(root):
    smoke = findings.decide("2a", ESTIMATE, {**ABOUT, "scale": "smoke"}, gate="no classes")
    assert (smoke.verdict, smoke.reason) == (findings.NOT_JUDGED, "")
    nothing = Estimate(np.float64("nan"), -np.inf, np.inf, np.int64(3), 100, np.nan, np.inf)
    path = findings.record(NOTEBOOK, [findings.decide("2a", nothing, ABOUT)], [], ABOUT)
    assert '"value": null' in path.read_text() and findings.read_results(path)["findings"]["detectable"].isna().all()


def test_two_data_sets_never_share_a_folder_of_results():
    x, y = (findings.results_folder(f"{folder}/photos.v2.parquet", "laptop") for folder in ("x", "y"))
    assert x != y and findings.reference_folder("x/photos.v2.parquet", "laptop").name == "photos-v2-laptop"
    assert findings.reference_folder("x/scenes.parquet", "laptop") != findings.reference_folder("scenes", "laptop")


def test_compare_counts_the_claims_that_are_in_both(root):
    here = [finding("2a"), finding("2d", verdict="inconclusive"), finding("2b"), finding("3a", value=np.nan)]
    there = [finding("2a", value=0.2504), finding("2d", value=0.2501), finding("3a"), finding("4a")]
    here, there = (pd.DataFrame([asdict(item) for item in items]) for items in (here, there))
    sentence = "3 claims: 2 verdicts as in the reference, 1 differs (2d); largest difference 0.0004 (2a)."
    assert findings.compare(here, there) == sentence
    renamed = there.assign(claim=["another", *there["claim"].tolist()[1:]])  # the same letter, another claim
    assert findings.compare(here, renamed).startswith("2 claims")
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


@pytest.mark.parametrize(("ending", "said"), [(".csv", "was changed since it was made"), (".json", "is damaged")])
def test_a_table_or_figure_that_was_damaged_is_not_published(root, ending, said):
    findings.record(NOTEBOOK, [finding()], ["02_a"], ABOUT)
    (findings.results_folder("scenes", "laptop") / f"02_a{ending}").write_text("{}")
    with pytest.raises(FindingsError, match=rf"02_a\{ending} {said}: run notebook 02 again"):
        findings.publish("scenes", "laptop", [NOTEBOOK])
    assert not list(root.glob("figures/*/"))


@pytest.mark.parametrize("content", ["", "[{", "{}x", "3", '[{"claim": "x"}]', "[3]", '["a"]', "null"])
def test_a_damaged_file_is_named(root, content):
    reference = findings.reference_folder("scenes", "laptop")
    reference.mkdir()
    (reference / "findings.json").write_text(content)
    with pytest.raises(FindingsError, match=f"{reference}/findings.json is damaged: restore it with git"):
        findings.all_references()
    path = findings.results_folder("scenes", "laptop") / f"{NOTEBOOK}.json"
    path.write_text(content)
    with pytest.raises(FindingsError, match=f"{NOTEBOOK}.json is damaged: run notebook {NOTEBOOK} again"):
        findings.read_results(path)
