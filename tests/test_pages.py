"""The generated pages: every claim, the gallery of a data set, executed notebooks, and README's tables."""

import json
import re
from dataclasses import asdict, replace

import nbformat
import pandas as pd
import pytest
from conftest import ROOT

from lib import findings, pages
from lib.stats import Estimate

NOTEBOOK = "02_miscaptioned_memorization"
ABOUT = {"notebook": NOTEBOOK, "dataset": "scenes", "name": "scenes", "scale": "laptop", "seeds": 3, "commit": "abc"}
ABOUT |= {"runs": "k1", "claims_commit": "def"}
ESTIMATE = Estimate(0.25, 0.1, 0.4, 3, 100, p=0.01, detectable=0.2)


def finding(name="2a", **changes):
    return replace(findings.decide(name, ESTIMATE, ABOUT), **changes)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """Return a function that publishes findings in a project of its own, and returns their folder."""
    monkeypatch.setattr(findings, "ROOT", tmp_path)

    def publish(*rows):
        folder = tmp_path / "figures" / f"{rows[0].dataset}-{rows[0].scale}"
        folder.mkdir(parents=True)
        (folder / "findings.json").write_text(json.dumps([asdict(row) for row in rows]))
        return folder

    return publish


def cells(text, first):
    """Return the cells of the table row that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_claim_is_one_row_with_its_data_sets_side_by_side(reference):
    reference(finding("2a"), finding("1e", verdict="not testable"), finding("2g", value=-0.2, low=-0.4, high=0.0))
    reference(finding("2a", dataset="flickr8k", value=0.1, low=-0.05, high=0.25, verdict="inconclusive"))
    text = pages.claims_page()
    assert text.count("memorized more than clean ones") == 1
    _, claim, paper, scenes, photographs = cells(text, '<a name="2a">')
    assert claim == findings.claims()["2a"]["claim"] and "above .89" in paper
    assert scenes.startswith("● reproduced<br>.250 [.100, .400]<br>")
    assert photographs.startswith("◐ inconclusive<br>.100 [−.050, .250]<br>")
    bars = [re.search("`(.*)`", cell)[1] for cell in (scenes, photographs)]
    assert len(bars[0]) == len(bars[1]) == pages.WIDTH and bars[0].index("┊") == bars[1].index("┊")
    assert bars[0].index("●") > bars[1].index("●") > bars[1].index("┊"), "one scale for a row"
    assert cells(text, '<a name="1e">')[-1] == "– not testable"


def test_the_gallery_adjusts_p_and_says_what_would_decide(reference):
    tested = [finding("2a", p=0.01), finding("2d", p=0.00001), finding("2i", p=0.4, verdict="inconclusive")]
    folder = reference(
        *tested, finding("2e", verdict="not testable", reason="few"), finding("2f", statistic="a|b", p=1.0)
    )
    about = {"notebook": NOTEBOOK, "figure": "02_x", "title": "Look here", "footer": "scenes, 3 seeds.", "place": 0}
    (folder / "02_x.json").write_text(json.dumps(about))
    text = pages.gallery(folder)
    by_claim = {claim: cells(text, f"[{claim}](../README.md#{claim})") for claim in ("2a", "2d", "2e", "2f", "2i")}
    assert {claim: row[-2] for claim, row in by_claim.items()} == {
        "2a": ".030", "2d": "< .001", "2e": "—", "2f": "1.000", "2i": ".800",
    }  # fmt: skip
    assert by_claim["2i"][1] == "**inconclusive**: at least 2 seeds" and by_claim["2e"][1].endswith("few")
    assert "3 seeds · commit" in text
    assert "a\\|b" in text and "repeat it: `./run_all.sh laptop --only 02 --seeds 3`" in text
    assert "### Look here\n\n![Look here](02_x.png)" in text and "[Table](02_x.csv)" in text
    with_data = reference(finding(dataset="flickr8k")), reference(finding(dataset="coco12k"))
    commands = [re.search("repeat it: `(.*?)`", pages.gallery(folder))[1] for folder in with_data]
    assert [re.search("--dataset (.*?) ", command)[1] for command in commands] == ["flickr8k", "coco12k.parquet"]


def test_the_summary_says_a_sentence_only_while_its_claim_has_that_verdict(monkeypatch):
    published = findings.all_references()

    def held(**verdicts):
        changed = published["finding"].map(verdicts).fillna(published["verdict"])
        monkeypatch.setattr(findings, "all_references", lambda: published.assign(verdict=changed))
        return cells(pages.summary(), "[2]")[-1]

    said = "clean pairs are memorized, too"
    assert said in held(**{"2e": "reproduced"}) and said not in held(**{"2e": "contradicted"})
    assert held(**{"2a": "reproduced", "2i": "reproduced"}).startswith("**● yes**")
    assert held(**{"2a": "reproduced", "2i": "inconclusive"}).startswith("**◐ partly**")
    assert held(**{"2a": "contradicted", "2i": "inconclusive"}).startswith("**○ no**")


def test_an_executed_notebook_becomes_a_page(tmp_path):
    new = nbformat.v4
    show = new.new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"})
    show.metadata = {"image/png": {"alt": "A figure", "figure": "02_a"}}
    table = new.new_output("execute_result", {"text/html": "<style>p {}</style><table></table>", "text/plain": "x"})
    log = new.new_output("stream", text="[....] training\rdone\n")
    cells = [
        new.new_markdown_cell("# 2 · A question?\n\n[next](03_encoder_attribution.ipynb), [pictures](../figures/x)"),
        new.new_code_cell("scale = 'laptop'", metadata={"tags": ["parameters"]}),
        new.new_code_cell("scale = 'deep'", metadata={"tags": ["injected-parameters"]}),
        new.new_code_cell("train()", outputs=[log, show, table]),
    ]
    path = tmp_path / "02_x.ipynb"
    nbformat.write(new.new_notebook(cells=cells), path)
    text = pages.executed_page(path, "abc")
    assert "[next](../../scenes-laptop/executed/03_encoder_attribution.md), [pictures](../../../figures/x)" in text
    assert "ran at commit abc" in text
    assert "<details><summary>code</summary>\n\n```python\ntrain()\n```\n\n</details>" in text
    assert "![A figure](../02_a.png)" in text and "<table></table>" in text and "done" in text
    assert "[....]" not in text and "<style>" not in text and "scale = 'laptop'" not in text and "'deep'" in text


def test_no_committed_page_is_stale():
    stale = [path for path, text in pages.pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run: python -m lib.pages --write"


@pytest.mark.parametrize("path", [*ROOT.glob("figures/**/*.md"), ROOT / "README.md"], ids=lambda path: str(path)[-60:])
def test_every_link_of_a_page_leads_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+?)[)#]", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_executed_pages_show_the_published_run():
    executed = [*ROOT.glob("figures/*/executed/*.md")]
    assert executed
    for path in executed:
        commits = set(pd.read_json(path.parent.parent / "findings.json")["commit"])
        assert any(f"ran at commit {commit}" in path.read_text(encoding="utf-8") for commit in commits), path
