"""./run_all.sh --lab in a real browser: notebooks open and run, and what they show is seen."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from conftest import ROOT, copy_project

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

pytestmark = pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver: install chromium-driver")
SECONDS = 400  # a busy machine may take 200 for notebook 02; only a failure waits for longer
ALL_CELLS = {"windowingMode": "none"}  # JupyterLab then holds all cells in the page, also those out of sight


@pytest.fixture
def project(tmp_path):
    """Return a copy of the project: JupyterLab saves a notebook that was run."""
    return copy_project(tmp_path / "a project")


@pytest.fixture
def lab(tmp_path, project):
    """Start JupyterLab as a reader would, but not with the settings and tabs of this user; return its address."""
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(ALL_CELLS))
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix, "BROWSER": "true", "CLIPMEM_RUNS": str(tmp_path / "runs")}
    environ |= {f"JUPYTERLAB_{name.upper()}_DIR": str(tmp_path / name) for name in ("settings", "workspaces")}
    words = ["bash", str(project / "run_all.sh"), "--lab"]
    log = tmp_path / "lab.log"
    with log.open("w") as output:
        pipes = {"stdout": output, "stderr": output}
        server = subprocess.Popen(words, cwd=tmp_path, env=environ, start_new_session=True, **pipes)
    try:
        yield wait(lambda: re.search(r"http://\S+?[?&]token=\w+", log.read_text()), log.read_text).group()
    finally:
        os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.add_argument("--window-size=1400,2400")
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "disable-background-networking"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def wait(found, described):
    """Return what `found` finds, as soon as it is something."""
    end = time.monotonic() + SECONDS
    while not (result := found()):
        assert time.monotonic() < end, described()
        time.sleep(0.5)
    return result


def seen(browser, selector, what="textContent"):
    """Return a property of every element of the notebook that a CSS selector finds."""
    script = "return [...document.querySelectorAll(`.jp-Notebook ${arguments[0]}`)].map(one => one[arguments[1]])"
    return browser.execute_script(script, selector, what)


def run_all(browser, text):
    """Run all cells of the notebook that shows a text, as soon as it does and its kernel is ready."""
    notebook = f"//div[contains(@class, 'jp-Notebook')]//*[contains(text(), '{text}')]"
    menu = "//li[contains(@class, 'lm-MenuBar-item')][.//text()='Run']"
    run = "//li[@data-command='runmenu:run-all' or @data-command='notebook:run-all-cells']"
    for path in ("//*[contains(@class, 'ExecutionIndicator')][@data-status='idle']", notebook, menu, run):

        def shown(path=path):
            return [element for element in browser.find_elements("xpath", path) if element.is_displayed()]

        wait(shown, lambda: browser.page_source[-3000:])[0].click()


def finished(browser):
    """Return the numbers of the code cells, once none is waiting: "[ ]:" where one was not run."""
    numbers = seen(browser, ".jp-CodeCell .jp-InputPrompt")
    return numbers if "[1]:" in numbers and "[*]:" not in numbers else []


def check_outputs(browser):
    """Fail where a cell shows an error or a warning, or a picture is not shown (of width 0)."""
    for kind in ("stderr", "error"):
        red = seen(browser, f"[data-mime-type='application/vnd.jupyter.{kind}']")
        assert not red, red
    assert all(seen(browser, "img", "naturalWidth")), "a picture is not shown"


def test_lab_opens_the_tour_and_shows_every_picture(lab, browser):
    browser.get(lab)
    run_all(browser, "three minutes")
    wait(lambda: len(seen(browser, "img")) >= 5 and finished(browser), lambda: seen(browser, ".jp-InputPrompt"))
    check_outputs(browser)
    host, token = lab.split("/lab")[0], lab.split("token=")[1]
    picture = f"{host}/files/figures/scenes-laptop/02_wrong_captions.png?token={token}"
    assert urlopen(picture).read(4) == b"\x89PNG", "README's pictures lie outside what is served"
    assert urlsplit(host).hostname in ("localhost", "127.0.0.1")
    with pytest.raises(HTTPError, match="403"):
        urlopen(f"{host}/api/contents")  # without the token


def test_notebook_02_trains_decides_and_has_a_slider_that_shows_other_pairs(project, lab, browser):
    name = "02_miscaptioned_memorization"
    replaced = {
        f"notebooks/{name}.ipynb": [('= \\"laptop\\"', '= \\"smoke\\"'), ("seeds: int = 5", "seeds: int = 2")],
        "lib/runs.py": [("DELAY = 2.0", "DELAY = 0.0")],  # else a fast machine trains too soon to show progress
    }
    for path, changes in replaced.items():
        for old, new in changes:
            text = (project / path).read_text()
            assert text.count(old) == 1, old
            (project / path).write_text(text.replace(old, new))
    browser.get(lab.replace("00_tour", name))
    run_all(browser, "Are pairs with a wrong caption memorized most?")
    wait(lambda: re.search(r"training 4 models: +\d+ %", "".join(seen(browser, "pre"))), lambda: seen(browser, "pre"))
    numbers = wait(lambda: finished(browser), lambda: seen(browser, ".jp-InputPrompt"))
    check_outputs(browser)
    expected = [f"[{number}]:" for number in range(1, len(numbers) + 1)]
    shown = [number or right for number, right in zip(numbers, expected, strict=True)]  # a folded solution shows none
    folded = (ROOT / "notebooks" / f"{name}.ipynb").read_text().count('"source_hidden": true')
    assert shown == expected and numbers.count("") == folded, "a cell was not run"
    assert len(seen(browser, "img")) > 10 and len([line for line in seen(browser, "td") if line == "not judged"]) > 5

    def picture_after(act):
        before = seen(browser, ".widget-interact img", "src")
        act()
        return wait(lambda: [new for new in seen(browser, ".widget-interact img", "src") if new not in before], str)

    wait(lambda: seen(browser, ".widget-interact img"), str)
    slider = browser.find_element("css selector", ".widget-interact .noUi-handle")
    picture_after(lambda: slider.send_keys(Keys.ARROW_RIGHT))
    assert slider.get_attribute("aria-valuetext") == "76"
    kinds = Select(browser.find_element("css selector", ".widget-interact select"))
    assert [kind.text for kind in kinds.options] == ["all kinds", "clean", "partly swapped", "inverted", "swapped"]
    picture_after(lambda: kinds.select_by_visible_text("swapped"))
    check_outputs(browser)
