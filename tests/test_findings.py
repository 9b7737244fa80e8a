"""lib/findings.py: findings are validated, kept side by side, shown in README, and never half written."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from lib import findings
from lib.stats import Estimate

NOTEBOOK = "02_miscaptioned_memorization"
ABOUT = {"notebook": NOTEBOOK, "dataset": "scenes", "scale": "laptop", "run_keys": ["k1", "k2"], "commit": "abc"}


def finding(**changes) -> findings.Finding:
    made = findings.decide("2a", "wrong > clean", "difference", Estimate(0.25, 0.1, 0.4, 3, 100), ABOUT)
    return replace(made, **changes)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("CLIPMEM_RUNS", raising=False)
    monkeypatch.delenv("CLIPMEM_RUN_ID", raising=False)
    (tmp_path / "figures" / "scenes-laptop").mkdir(parents=True)
    (tmp_path / "figures" / "scenes-laptop" / "02_a.png").write_bytes(b"png")
    return tmp_path


def recorded(root, *items, notebook=NOTEBOOK, scale="laptop"):
    return findings.record(notebook, items, [], "scenes", scale, root)


def test_record_writes_the_results_of_this_very_run(root, monkeypatch):
    monkeypatch.setenv("CLIPMEM_RUN_ID", "run-7")
    monkeypatch.setenv("CLIPMEM_RUNS", str(root / "elsewhere"))
    figures = ["figures/scenes-laptop/02_a.png"]
    path = findings.record(NOTEBOOK, [finding()], figures, "scenes", "laptop", root)
    assert path == root / "elsewhere" / "results" / "scenes-laptop" / f"{NOTEBOOK}.json"
    done = json.loads(path.read_text())
    assert (done["run_id"], done["notebook"], done["figures"]) == ("run-7", NOTEBOOK, figures)
    assert done["findings"][0]["verdict"] == "reproduced" and list(done["findings"][0]) == findings.FIELDS


def test_a_notebook_replaces_its_own_findings_and_keeps_the_others(root):
    recorded(root, replace(finding(finding="3"), notebook="03_x"), notebook="03_x")
    recorded(root, finding(), finding(claim="older"))
    recorded(root, finding(claim="newer"))
    rows = findings.read(root)
    assert list(rows.claim) == ["newer", "wrong > clean"] and list(rows.notebook) == [NOTEBOOK, "03_x"]
    assert not list((root / "figures").rglob("*.part")) and not list((root / "figures").rglob("*.lock"))


def test_notebooks_that_end_at_once_lose_nothing(root):
    names = [f"{i:02d}_x" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: recorded(root, finding(notebook=name), notebook=name), names))
    assert sorted(findings.read(root).notebook) == names


def test_read_leaves_smoke_out(root):
    recorded(root, finding(scale="smoke"), scale="smoke")
    assert findings.read(root).empty
    assert findings.table(findings.read(root)) == "No findings are recorded yet."


def test_what_is_not_finite_becomes_null_and_not_testable(root):
    broken = findings.decide("2a", "c", "s", Estimate(np.float64("nan"), -np.inf, np.inf, np.int64(3), 100), ABOUT)
    assert (broken.value, broken.low, broken.verdict) == (None, None, "not testable at this scale")
    text = recorded(root, broken).read_text()
    assert "NaN" not in text and '"value": null' in text
    assert "—" in findings.table(findings.read(root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "yes"}, "verdict is 'yes'"),
        ({"low": 0.5}, "rising order"),
        ({"seeds": 0}, "seeds is 0"),
        ({"claim": ""}, "claim is ''"),
        ({"value": "0.2"}, "expected numbers"),
        ({"dataset": "flickr8k"}, "belongs to"),
        ({"run_keys": (1,)}, "run_keys"),
    ],
)
def test_record_refuses_a_malformed_finding(root, changes, message):
    with pytest.raises(findings.FindingsError, match=f"finding 1: .*{message}"):
        recorded(root, finding(**changes))
    assert not list(root.rglob("*.json"))


def test_record_refuses_a_figure_that_was_not_saved(root):
    with pytest.raises(findings.FindingsError, match="declared but not saved"):
        findings.record(NOTEBOOK, [finding()], ["figures/missing.png"], "scenes", "laptop", root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "cannot be read as JSON"),
        ("{}", "expected a list"),
        ('[{"claim": "x"}]', "entry 1: .*missing or unknown: commit"),
        ("[3]", "entry 1: .*int"),
        ('[{"value": NaN}]', "NaN"),
    ],
)
def test_a_malformed_file_is_named_with_its_entry(root, content, message, capsys):
    path = root / "figures" / "scenes-laptop" / "findings.json"
    path.write_text(content)
    with pytest.raises(findings.FindingsError, match=message) as error:
        findings.read(root)
    assert str(path) in str(error.value)
    assert findings.main(["--check"], root) == 1 and str(path) in capsys.readouterr().err


def test_table_shows_the_paper_ours_and_the_command(root):
    recorded(root, finding(claim="a|b"), finding(finding="2c", claim="better than g"))
    lines = findings.table(findings.read(root)).splitlines()
    assert len(lines) == 4 and "above .89" in lines[2] and "a\\|b" in lines[2] and "—" in lines[3]
    assert "difference: 0.250 [0.100, 0.400]" in lines[2] and "**reproduced**" in lines[2]
    assert "`./run_all.sh laptop --only 02`" in lines[2]
    photos = findings.read(root).assign(dataset="flickr8k")
    assert "`./run_all.sh laptop --only 02 --dataset flickr8k`" in findings.table(photos)


def test_readme_is_written_checked_and_found_stale(root, capsys):
    readme = root / "README.md"
    readme.write_text(f"# Title\n{findings.BEGIN}\n{findings.END}\nthe end\n")
    recorded(root, finding())
    assert findings.main(["--check"], root) == 1 and "stale" in capsys.readouterr().err
    assert findings.main(["--write"], root) == 0 and findings.main(["--check"], root) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n") and text.endswith("the end\n") and "wrong > clean" in text
    recorded(root, finding(value=0.3))
    assert findings.main(["--check"], root) == 1


@pytest.mark.parametrize("text", ["no markers", f"{findings.END}{findings.BEGIN}", f"{findings.BEGIN}" * 2])
def test_readme_without_its_two_markers_is_named(root, text, capsys):
    (root / "README.md").write_text(text)
    assert findings.main(["--write"], root) == 1 and "README.md must hold" in capsys.readouterr().err
    assert (root / "README.md").read_text() == text


def test_without_a_flag_the_table_is_printed(root, capsys):
    recorded(root, finding())
    assert findings.main([], root) == 0 and "wrong > clean" in capsys.readouterr().out


@pytest.mark.skipif(not (findings.ROOT / "README.md").exists(), reason="README.md is not written yet")
def test_the_projects_readme_holds_the_committed_findings():
    assert findings.main(["--check"]) == 0
