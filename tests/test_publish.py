"""The reference: published on conditions, shown on generated pages."""

import json
import re
import shutil
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_findings import ABOUT, ESTIMATE, NOTEBOOK

from lib import data as sets
from lib import runs, store, tables
from lib.companion import findings, publish
from lib.companion.notebook import NotebookRun
from lib.data import prepare
from lib.recipes import CORRUPTED, Study
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
        show = new.new_output("display_data", {"text/html": "<img src='data:'>", "text/plain": "<Figure>"})
        show.metadata = {"text/html": {"alt": "A figure", "figure": f"scenes-laptop/{notebook[:2]}_a"}}
        log = new.new_output("stream", text="\r[#.] training\ndone\n")
        table = new.new_output("execute_result", {"text/html": "<style>p {}</style><table></table>"})
        links = "[next](03_encoder_attribution.ipynb), [own](05_your_own_models.ipynb), [x](../figures/x)"
        default = new.new_code_cell("scale = 'deep'", metadata={"tags": ["parameters"]})
        cells = [new.new_markdown_cell(links), default, new.new_code_cell("train()", outputs=[log, show, table])]
        nbformat.write(new.new_notebook(cells=cells), tmp_path / f"{notebook}.ipynb")
        return publish.publish(about["dataset"], about["scale"], [notebook], tmp_path)

    return run


def test_the_pages_show_what_was_published(run):
    late, seeds = replace(ESTIMATE, p=0.04), replace(ESTIMATE, value=-0.2, low=-0.3, high=-0.1, over="seeds")
    found = ("2a", ESTIMATE, ""), ("2b", late, ""), ("2d", ZERO, ""), ("2i", ESTIMATE, ""), ("2j", ESTIMATE, "too|few")
    folder = run(*found, ("6k", ESTIMATE, ""))
    run(("2a", ZERO, ""), ("2b", ZERO, ""), ("2i", seeds, ""), dataset="flickr8k", name="flickr8k", figures=())
    page = (store.ROOT / "figures" / "README.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith('| <a name="2a">'))
    assert findings.claims()["2a"]["claim"] in line and "● reproduced<br>.250 [.100, .400] |" in line
    assert line.endswith("◐ inconclusive<br>.000 [.000, .000] |")
    assert all(
        text in page for text in ("– not testable |", "Beyond the paper", "○ contradicted<br>−.200 [−.300, −.100] † |")
    )
    assert page.count("**6k**") == 1 and "| MultiMem's" in page.split("## Withdrawn")[1] and "| |\n| <a" in page
    assert findings.agreement("scenes-laptop", "flickr8k-laptop") == [3, 1, 0, 1]
    assert "both test 3 claims. Of these, 1 has the same verdict, 0 have values of" in page and "1 is opposite" in page
    assert "On scenes-laptop, 2 of 5 claims are undecided (1 of them only after the adjustment), and 1 is not t" in page
    text = (folder / "README.md").read_text()
    assert "| ● reproduced | " in text and " | .250 [.100, .400] | .012 | .025 | .200 |" in text, "p adjusted"
    assert "| ◐ inconclusive (adjusted) | " in text and "On this page, 2 of 5 claims are undecided" in text
    assert "– not testable: too\\|few |" in text and " | — | .200 |" in text
    assert "### Look here\n\n![Look here](02_a.png)\n\n3 seeds. [Table](02_a.csv) · [PDF](02_a.pdf)\n" in text
    assert "repeat it: `./run_all.sh laptop --only 02 --seeds 3` · [executed](executed/02_" in text
    text = (folder / "executed" / f"{NOTEBOOK}.md").read_text()
    assert "[next](../../scenes-laptop/executed/03_encoder_attribution.md)" in text
    assert "[own](../../scenes-laptop/executed/05_your_own_models.md), [x](../../../figures/x)" in text
    assert "<details><summary>code</summary>\n\n```python\ntrain()\n```\n\n</details>" in text
    assert "![A figure](../../../figures/scenes-laptop/02_a.png)" in text and "<table></table>" in text
    assert "done" in text and "[#.]" not in text and "<style>" not in text and "'deep'" not in text


def test_publishing_again_replaces_what_the_reference_held_of_a_notebook(run):
    folder = run(("2a", ESTIMATE, ""), ("2b", ESTIMATE, ""), figures=("old", "a"))
    run(("3a", ESTIMATE, ""), notebook="03_encoder_attribution")
    run(("2a", ESTIMATE, ""), figures=("a",))
    assert {path.stem for path in folder.glob("0*.png")} == {"02_a", "03_a"}
    assert findings.read_reference(folder)["finding"].tolist() == ["2a", "3a"]
    mine = {"dataset": "mine", "name": "mine"}
    folder = run(("2a", ESTIMATE, ""), **mine)
    run(("3a", ESTIMATE, ""), notebook="03_encoder_attribution", **mine)
    with pytest.raises(ValueError, match="other data with this name"):
        run(("2a", ESTIMATE, ""), data="d2", **mine)
    assert (folder / "02_a.png").is_file(), "nothing was deleted"


@pytest.mark.parametrize("change", [{"scale": "smoke"}, {"seeds": 2}, {"commit": "abc+"}, {"commit": "unknown"}])
def test_publish_refuses(run, change):
    with pytest.raises(ValueError, match=r"decides nothing|too few|commit first"):
        run(("2a", ESTIMATE, ""), **change)
    assert not list(store.ROOT.glob("figures/*/"))


def test_published_scores_give_the_same_memorization_without_training(trained, tmp_path, monkeypatch):
    study, data = Study({"CLIP": trained}, (0, 1), 2), prepare(trained.data)
    measured = lambda: (tables.score_pairs(study, (), ("shared", *CORRUPTED)), tables.during_training(study))  # noqa: E731
    NotebookRun(ABOUT, study).finish()
    result, before = findings.read_json(findings.results_folder("scenes", "laptop") / f"{NOTEBOOK}.json"), measured()
    for models in ([one | {"notebook": name} for one in result["models"]] for name in ("02", "03", "03")):
        store.publish(tmp_path, models, publish.UNREAD)
    assert len(pd.read_parquet(tmp_path / "02-pairs-2-sh-po-ex.0.parquet")) == 4 * 180, "each model once"
    assert {*pd.read_parquet(tmp_path / "02-evaluations.0.parquet")}.isdisjoint(publish.UNREAD["evaluations"])
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_kept", lambda name, recipe, make: store.published(tmp_path, runs.run_key(recipe), name))
        for old, new in zip(before, measured(), strict=True):
            assert new[["pair_id", "subset", "seed"]].equals(old[["pair_id", "subset", "seed"]])
            assert abs(tables.pool(old)["clipmem"].mean() - tables.pool(new)["clipmem"].mean()) < 1e-4
    held = sets.stand_in(data.config, sets.truth(data))  # of scenes
    rows = held.table.index
    assert np.array_equal(held.images[rows], data.images[rows])
    assert np.array_equal(held.half("candidate", 1), data.half("candidate", 1))
    assert [held.captions[row][0] for row in rows] == [data.captions[row][0] for row in rows]
    config = replace(data.config, dataset="flickr8k")
    absent = sets.stand_in(config, sets.truth(replace(data, config=config)))
    assert not len(absent.images) and {"caption", "true"}.isdisjoint(absent.table) and absent.tokens.shape[1] == 5
    store.publish(tmp_path, [{"notebook": name, "key": "new"} for name in ("02", "03")], publish.UNREAD)
    assert findings.read_json(tmp_path / "index.json")["models"] == [] == [*tmp_path.glob("*.parquet")]
    assert sum(path.stat().st_size for path in ROOT.glob("figures/*/scores/*")) < 25e6


def test_no_committed_page_is_stale_and_every_link_leads_somewhere():
    pages = publish.pages()
    stale = [path for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run: python -m lib.companion.publish"
    for path in [*ROOT.glob("figures/**/*.md"), ROOT / "README.md"]:
        links = re.findall(r"\]\(([^)#\s]+?)[)#]", path.read_text(encoding="utf-8"))
        assert not [link for link in links if "://" not in link and not (path.parent / link).exists()], path
