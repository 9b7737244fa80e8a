"""Findings: the claims, decided by their tests, recorded by this very run; data sets and tables by name."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import store
from lib.companion import findings
from lib.companion.notebook import NotebookRun
from lib.stats import Estimate

NOTEBOOK = "02_miscaptioned_memorization"
ABOUT = {"notebook": NOTEBOOK, "dataset": "scenes", "name": "scenes", "scale": "laptop", "seeds": 3, "commit": "abc"}
ABOUT |= {"runs": "k1", "data": "d1", "device": "cpu", "precision": "fp32"}
ESTIMATE = Estimate(0.25, 0.1, 0.4, 3, 100, p=0.0123456789, smallest_detectable=0.2)


def test_a_claim_has_its_words_and_side_from_the_claims_and_says_why_it_cannot_be_tested():
    found, entry = findings.decide("2a", ESTIMATE, ABOUT), findings.claims()["2a"]
    assert found.items() >= {"claim": entry["claim"], "statistic": entry["statistic"], "reason": ""}.items()
    assert found.items() >= {"p": 0.0123457, "smallest_detectable": 0.2, "runs": "k1"}.items()
    assert (found["verdict"], findings.decide("2g", ESTIMATE, ABOUT)["verdict"]) == ("reproduced", "not supported")
    assert findings.decide("2b", ESTIMATE, ABOUT, detail="final loss")["statistic"].endswith(" (final loss)")
    gated = findings.decide("1e", ESTIMATE, ABOUT, gate="the control fails")
    assert (gated["verdict"], gated["reason"], gated["value"]) == ("not testable", "the control fails", 0.25)
    within = findings.decide("2h", replace(ESTIMATE, value=0.01, low=-0.1, error=0.05, df=20, over="seeds"), ABOUT)
    assert within["smallest_detectable"] is None, "it would be of a test against 0"
    assert (within["verdict"], within["over"], within["p"]) == ("supported", "seeds", pytest.approx(0.0055, abs=1e-4))
    assert findings.of_paper("1a") and not findings.of_paper("2h"), "the paper speaks of 2h and claims the contrary"
    few = findings.decide("2a", replace(ESTIMATE, seeds=1), ABOUT)
    assert few["verdict"] == "not testable" and "seed" in few["reason"]
    smoke = findings.decide("2a", ESTIMATE, ABOUT | {"scale": "smoke"}, gate="no classes")
    assert (smoke["verdict"], smoke["reason"]) == (findings.NOT_JUDGED, "")
    with pytest.raises(KeyError):
        findings.decide("9z", ESTIMATE, ABOUT)


def test_every_claim_is_complete_and_those_withdrawn_are_not_shown():
    always = {"claim", "statistic", "test", "side", "paper"}
    some = {"withdrawn", "margin", "ours", "prediction", "power"}
    for name, entry in findings.claims().items():
        assert always <= entry.keys() <= always | some and all(entry[part] for part in always - {"paper"}), name
        assert entry["side"] in ("above", "below", "within") and ("prediction" in entry) == ("power" in entry), name
        assert ("margin" in entry) == (entry["side"] == "within" or name in ("1a", "4c")), name
    words = [entry["claim"] for entry in findings.claims().values()]
    assert len(set(words)) == len(words) and sum("withdrawn" not in entry for entry in findings.claims().values()) == 47
    powers = [entry["power"] for entry in findings.claims().values() if "prediction" in entry]
    assert np.mean([power[:2] in (".8", ".9") for power in powers]) >= 0.75, powers
    table = findings.claims_table("03")
    assert [*table.index] == [f"3{letter}" for letter in "abcdefg"] and [*table] == ["claim", "holds when", "the paper"]
    assert "6k" in findings.claims() and not {"6k", "6q"} & {*findings.claims_table("06").index}


def test_a_verdict_counts_that_is_significant_among_all_claims_of_its_set(tmp_path):
    verdicts = {"2a": "reproduced", "2b": "inconclusive", "2d": "contradicted", "2i": "not testable"}
    given = zip(verdicts.items(), (0.04, 0.2, 0.01, 0.001), strict=True)
    rows = [findings.decide(name, ESTIMATE, ABOUT) | {"verdict": verdict, "p": p} for (name, verdict), p in given]
    store.write_json(tmp_path / "findings.json", findings.adjust(rows))
    found = findings.read_reference(tmp_path).set_index("finding")
    assert found["p_adjusted"].tolist() == pytest.approx([0.04 * 3 / 2, 0.2, 0.01 * 3, np.nan], nan_ok=True)
    assert found["published"].to_dict() == verdicts | {"2a": findings.ADJUSTED} and set(found["set"]) == {tmp_path.name}


def test_a_notebook_records_its_figures_and_verdicts():
    run, nothing = NotebookRun(ABOUT), Estimate(np.float64("nan"), -np.inf, np.inf, np.int64(3), 100, np.nan, np.inf)
    run.decide("2d", nothing)
    run.decide("2a", ESTIMATE)
    for name in ("a", "b", "a"):
        figure = plt.figure()
        figure.suptitle("So it is")
        run.keep(figure, name, pd.DataFrame({"x": [1 / 3]}))
    assert run.finish()["verdict"].to_dict() == {"2a": "reproduced", "2d": "not testable"}
    folder = findings.results_folder("scenes", "laptop")
    found = json.loads((folder / f"{NOTEBOOK}.json").read_text())
    assert (found["figures"], found["findings"][1]["value"]) == (["02_a", "02_b"], None)
    assert (folder / "02_a.csv").read_text() == "x\n0.333333\n"
    about = json.loads((folder / "02_b.json").read_text())
    assert about.items() >= {"title": "So it is", "rows": 1, "data": "d1"}.items()
    private = NotebookRun(ABOUT | {"dataset": "photos-1a2b3c"})
    private.keep(plt.figure(), "a", pd.DataFrame({"x": [1]}), private=True)
    assert (store.root() / "private/photos-1a2b3c-laptop/02_a.png").is_file() and private.figures == []


def test_two_data_sets_never_share_a_folder_of_results():
    x, y = (findings.results_folder(f"{folder}/photos.v2.parquet", "laptop") for folder in ("x", "y"))
    assert x != y and findings.reference_folder("x/photos.v2.parquet", "laptop").name == "photos-v2-laptop"
    assert findings.results_folder("x/scenes", "laptop") != findings.results_folder("scenes", "laptop")
