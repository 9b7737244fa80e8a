"""The report of a run: its pages as text, and in a real browser."""

import base64
import json
import re
import shutil
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from lib import findings, report

CAPTION = '<script>document.title = "stolen"</script> ![a](http://example.com/a.png) [b](c.html) costs $5, $x_1$ more'
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TEXT = """# Is it so?

See [02](02_why.ipynb), [a file](../lib/a.py), [the paper](https://arxiv.org/abs/2502.07830), $a_{in}$ and

$$\\text{CLIPMem} = \\frac{a}{b} - \\underset{t}{\\mathrm{mean}} \\cos(I, T_t) \\qquad c = d + e + f + g + h + i + j$$

![two dots](../figures/dots.png) ![not there](../figures/none.png)

| a rather long heading | another one that is long | and a third that is longer still |
|---|---|---|
| 1 | 2 | 3 |

## The idea

## The idea
"""


def shown(kind, data, **metadata):
    return new_output("display_data", data={kind: data}, metadata=metadata)


def executed(folder):
    """Write a notebook as papermill leaves it, with one output of each kind, and return its path."""
    png = {"alt": 'A "rising" curve', "figure": "01_curve"}
    outputs = [
        new_output("stream", name="stdout", text=f"[....] 3 %\n{CAPTION}\r[....] 5 %\nlast line"),
        new_output("stream", name="stderr", text="careful"),
        shown("text/markdown", f"**Guess.** {CAPTION}"),
        shown("text/html", "<table class='dataframe'><tr>" + "<td>&lt;script&gt;</td>" * 30 + "</tr></table>"),
        shown("image/png", base64.b64encode(PNG).decode(), **{"image/png": png}),
        shown("image/png", base64.b64encode(PNG).decode()),
        new_output("execute_result", data={"text/plain": "array([1, 2, 3])" * 20}, execution_count=3),
    ]
    cells = [
        new_markdown_cell(TEXT),
        new_code_cell("seeds: int = 5  # proposed", metadata={"tags": ["parameters"]}),
        new_code_cell("seeds = 2", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("show(" + "1, " * 100 + ")", outputs=outputs, execution_count=3),
    ]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"papermill": {"parameters": {"seeds": 2}}})
    folder.mkdir(parents=True)
    nbformat.write(book, folder / "01_is_it.ipynb")
    return folder / "01_is_it.ipynb"


@pytest.fixture
def written(tmp_path, own_store, monkeypatch, request):
    """Write the report of one notebook, of three that there are, and return its folder."""
    scale = getattr(request, "param", "laptop")
    project, results = tmp_path / "a project", findings.results_folder("scenes", scale)
    for path in ("notebooks/01_is_it.ipynb", "notebooks/02_why.ipynb", "notebooks/03_how.ipynb", "figures/dots.png"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_bytes(PNG)
    monkeypatch.setattr(findings, "ROOT", project)
    where = {"scale": scale, "dataset": "scenes", "notebook": "01_is_it", "commit": "abc+", "claims_commit": "def"}
    row = {**where, "finding": "1a", "claim": "a < b", "verdict": "reproduced", "statistic": "b − a", "value": -0.25}
    row |= {"low": -0.5, "high": None, "p": 0.1, "detectable": 0.1, "seeds": 2, "reason": "<b>as told</b>", "runs": ""}
    about = {**where, "seeds": 2, "device": "cpu", "precision": "fp32", "versions": {"torch": "2.15.0"}}
    found = {"run_id": "1", "notebook": "01_is_it", "about": about, "findings": [row], "figures": ["01_curve"]}
    results.mkdir(parents=True)
    (results / "01_is_it.json").write_text(json.dumps(found))
    told = {"figure": "01_curve", "title": "It rises, & falls", "footer": "scenes, 2 seeds"}
    for ending, content in {".png": PNG, ".pdf": b"%PDF", ".csv": b"a\n", ".json": json.dumps(told).encode()}.items():
        (results / f"01_curve{ending}").write_bytes(content)
    (project / f"figures/scenes-{scale}").mkdir()
    (project / f"figures/scenes-{scale}/findings.json").write_text(json.dumps([row | {"value": -0.3}]))
    report.write(project, executed(own_store / "executed" / f"scenes-{scale}"), "scenes", scale)
    return own_store / "report" / f"scenes-{scale}"


def test_a_page_shows_what_the_notebook_says_and_runs_nothing(written):
    page = (written / "01_is_it.html").read_text()
    assert "<script" not in page and "default-src 'none'" in page and "<title>Is it so?</title>" in page
    assert page.count("&lt;script&gt;document.title") == 2, "in the stream and in the Markdown output"
    assert "costs $5, $x_1$ more" in page and "example.com/a.png)" in page and 'src="http' not in page
    assert page.count("<math") == 2 and "\\frac" not in page and "$$" not in page
    assert '<a href="02_why.html">02</a>' in page and "a file, <a" in page and "not there" in page
    assert 'alt="two dots" src="data:image/png' in page and 'id="01_curve"' in page
    assert "alt='A \"rising\" curve'" in page and 'alt="Figure in the section: The idea"' in page
    assert "[....]" not in page and "last line" in page and "proposed" not in page and ">Parameters<" in page
    assert 'href="#1-the-idea"' in page and 'href="#2-the-idea"' in page
    assert 'rel="prev"' in page and 'href="03_how.html" rel="next"' in page and "SMOKE" not in page


def test_the_index_shows_verdicts_figures_and_where_they_come_from(written):
    page = (written / "index.html").read_text()
    assert re.search(r'badge reproduced">reproduced</span></td>\s*<td class="id">1a</td>\s*<td>a &lt; b', page)
    assert "−0.250 [−0.500, —]" in page and "&lt;b&gt;as told&lt;/b&gt;" in page
    assert "1 claims: 1 verdicts as in the reference; largest difference 0.05 (1a)" in page
    assert 'alt="It rises, &amp; falls"' in page and 'href="01_is_it.html#01_curve"' in page
    assert "commit abc+" in page and "torch 2.15.0" in page and "seeds = 2" in page
    for ending in (".png", ".csv", ".pdf"):
        assert f'"figures/01_curve{ending}"' in page and (written / f"figures/01_curve{ending}").is_file()


@pytest.mark.parametrize("written", ["smoke"], indirect=True)
def test_smoke_is_labelled_and_decides_nothing(written):
    page = (written / "index.html").read_text().split("</style>")[1]
    assert "SMOKE" in page and "badge" not in page and "reproduced" not in page and "−0.250" in page
    assert "SMOKE" in (written / "01_is_it.html").read_text()


def test_a_notebook_that_was_not_run_has_a_page_that_says_so(written):
    assert "./run_all.sh laptop --only 03" in (written / "03_how.html").read_text()


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not shutil.which("chromedriver"):
        pytest.skip("no chromedriver: install chromium-driver")
    options = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "disable-gpu", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{word}")
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    yield driver
    driver.quit()


def test_every_page_is_whole_in_a_browser_on_a_phone(written, browser):
    pages = sorted(written.glob("*.html"))
    assert [page.name for page in pages] == ["01_is_it.html", "02_why.html", "03_how.html", "index.html"]
    for page in pages:
        browser.get(page.as_uri())
        assert not browser.get_log("browser"), "an error"
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        foreign = [url for url in asked if not url.startswith((written.as_uri(), "data:", "chrome:"))]
        assert page.as_uri() in asked and not foreign
        assert "stolen" not in browser.title
        images = "return [...document.images].map(image => [image.naturalWidth, image.alt])"
        assert all(width and len(alt) > 5 for width, alt in browser.execute_script(images))
        assert not re.search(r"\$\$|\\[a-z]", browser.execute_script("return document.body.innerText")), "raw TeX"
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390, "wider than the phone"
        for href in browser.execute_script("return [...document.links].map(link => link.href)"):
            url = urlsplit(href)
            if url.scheme == "file":
                target = written / unquote(url.path).rpartition("/")[2]
                target = written / "figures" / target.name if "/figures/" in url.path else target
                assert target.is_file(), href
                assert not url.fragment or f'id="{unquote(url.fragment)}"' in target.read_text(), href
            else:
                assert url.scheme == "https", href
