"""The reference: published on conditions, shown on generated pages."""

import json
import re
import shutil

import nbformat
import pytest
from conftest import ROOT
from test_findings import ABOUT, ESTIMATE, NOTEBOOK

from lib import store
from lib.companion import findings, publish
from lib.stats import Estimate

ZERO = Estimate(0.0, 0.0, 0.0, 3, 100, p=1.0, smallest_detectable=0.0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that leaves results behind as a notebook does, and publishes them in a project of its own."""
    monkeypatch.setattr(store, "ROOT", tmp_path)
    (tmp_path / "figures").mkdir()
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")

    def run(*estimates, notebook=NOTEBOOK, figures=("a",), **changes):
        about = ABOUT | {"notebook": notebook} | changes
        folder = findings.results_folder(about["dataset"], about["scale"])
        names = [f"{notebook[:2]}_{name}" for name in figures]
        for place, name in enumerate(names):
            told = {"figure": name, "title": "Look here", "footer": "3 seeds.", "place": place}
            for ending in publish.ENDINGS:
                store.write_bytes(folder / f"{name}{ending}", json.dumps(about | told).encode())
        found = [findings.decide(name, one, about, gate) for name, one, gate in estimates]
        findings.record(found, names, about)
        new = nbformat.v4
        show = new.new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"})
        show.metadata = {"image/png": {"alt": "A figure", "figure": f"scenes-laptop/{notebook[:2]}_a"}}
        log = new.new_output("stream", text="\r[#.] training\ndone\n")
        table = new.new_output("execute_result", {"text/html": "<style>p {}</style><table></table>"})
        links = "[next](03_encoder_attribution.ipynb), [own](05_your_own_models.ipynb), [x](../figures/x)"
        default = new.new_code_cell("scale = 'deep'", metadata={"tags": ["parameters"]})
        cells = [new.new_markdown_cell(links), default, new.new_code_cell("train()", outputs=[log, show, table])]
        nbformat.write(new.new_notebook(cells=cells), tmp_path / f"{notebook}.ipynb")
        return publish.publish(about["dataset"], about["scale"], [notebook], tmp_path)

    return run


def test_the_pages_show_what_was_published(run):
    folder = run(("2a", ESTIMATE, ""), ("2d", ZERO, ""), ("2e", ESTIMATE, "too|few"), ("6k", ESTIMATE, ""))
    run(("2a", ZERO, ""), dataset="flickr8k", name="flickr8k", figures=())
    page = (store.ROOT / "figures" / "README.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith('| <a name="2a">'))
    assert findings.claims()["2a"]["claim"] in line and "● reproduced<br>.250 [.100, .400] |" in line
    assert line.endswith("◐ inconclusive<br>.000 [.000, .000] |")
    assert "– not testable |" in page and "(withdrawn: MultiMem" in page and "Beyond the paper" in page
    text = (folder / "README.md").read_text()
    assert "| **reproduced** | " in text and " | .250 [.100, .400] | .019 | .200 |" in text, "p adjusted"
    assert "**not testable**: too\\|few |" in text and " | — | .200 |" in text
    assert "### Look here\n\n![Look here](02_a.png)\n\n3 seeds. [Table](02_a.csv) · [PDF](02_a.pdf)\n" in text
    assert "repeat it: `./run_all.sh laptop --only 02 --seeds 3` · [executed](executed/02_" in text
    text = (folder / "executed" / f"{NOTEBOOK}.md").read_text()
    assert "[next](../../scenes-laptop/executed/03_encoder_attribution.md)" in text
    assert "[own](../../../notebooks/05_your_own_models.ipynb), [x](../../../figures/x)" in text
    assert "<details><summary>code</summary>\n\n```python\ntrain()\n```\n\n</details>" in text
    assert "![A figure](../../../figures/scenes-laptop/02_a.png)" in text and "<table></table>" in text
    assert "done" in text and "[#.]" not in text and "<style>" not in text and "'deep'" not in text


def test_publishing_again_replaces_what_the_reference_held_of_a_notebook(run):
    folder = run(("2a", ESTIMATE, ""), ("2b", ESTIMATE, ""), figures=("old", "a"))
    run(("3a", ESTIMATE, ""), notebook="03_encoder_attribution")
    run(("2a", ESTIMATE, ""), figures=("a",))
    assert {path.stem for path in folder.glob("0*.png")} == {"02_a", "03_a"}
    assert findings.read_reference(folder)["finding"].tolist() == ["2a", "3a"]
    with pytest.raises(ValueError, match="other data with this name"):
        run(("2a", ESTIMATE, ""), data="d2")
    assert (folder / "02_a.png").is_file(), "nothing was deleted"


@pytest.mark.parametrize("change", [{"scale": "smoke"}, {"seeds": 2}, {"commit": "abc+"}, {"commit": "unknown"}])
def test_publish_refuses(run, change):
    with pytest.raises(ValueError, match=r"decides nothing|too few|commit first"):
        run(("2a", ESTIMATE, ""), **change)
    assert not list(store.ROOT.glob("figures/*/"))


def test_no_committed_page_is_stale_and_every_link_leads_somewhere():
    pages = publish.pages()
    stale = [path for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run: python -m lib.companion.publish"
    for path in [*ROOT.glob("figures/**/*.md"), ROOT / "README.md"]:
        links = re.findall(r"\]\(([^)#\s]+?)[)#]", path.read_text(encoding="utf-8"))
        assert not [link for link in links if "://" not in link and not (path.parent / link).exists()], path
