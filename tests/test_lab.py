"""./run_all.sh --lab in a real browser: the tour opens, runs, and every picture is shown."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from conftest import ROOT

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver: install chromium-driver")
SECONDS = 120  # a slow machine starts JupyterLab and a kernel in 30


@pytest.fixture
def lab(tmp_path):
    """Start JupyterLab as a reader would; return the address that it prints."""
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix, "BROWSER": "true", "CLIPMEM_RUNS": str(tmp_path / "runs")}
    words = ["bash", str(ROOT / "run_all.sh"), "--lab"]
    log = tmp_path / "lab.log"
    with log.open("w") as output:
        pipes = {"stdout": output, "stderr": output}
        server = subprocess.Popen(words, cwd=tmp_path, env=environ, start_new_session=True, **pipes)
    try:
        yield wait(lambda: re.search(r"http://\S+?[?&]token=\w+", log.read_text()), lambda: log.read_text()).group()
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


def widths(browser):
    """Return how wide the pictures of the notebook really are; 0: not shown."""
    script = "return [...document.querySelectorAll('.jp-Notebook img')].map(image => image.naturalWidth)"
    return browser.execute_script(script)


def test_lab_opens_the_tour_and_shows_every_picture(lab, browser):
    def click(path):
        def shown():
            return [element for element in browser.find_elements("xpath", path) if element.is_displayed()]

        wait(shown, lambda: f"{path} in {browser.page_source[-3000:]}")[0].click()

    browser.get(lab)
    click("//div[contains(@class, 'jp-Notebook')]//*[contains(text(), 'three minutes')]")
    click("//li[contains(@class, 'lm-MenuBar-item')][.//text()='Run']")
    click("//li[@data-command='runmenu:run-all' or @data-command='notebook:run-all-cells']")
    wait(lambda: len(widths(browser)) >= 5, lambda: browser.page_source[-3000:])
    assert all(widths(browser)), "a picture is not shown"
    assert not browser.find_elements("css selector", "[data-mime-type='application/vnd.jupyter.stderr']"), "a warning"
    host, token = lab.split("/lab")[0], lab.split("token=")[1]
    picture = f"{host}/files/figures/scenes-laptop/02_wrong_captions.png?token={token}"
    assert urlopen(picture).read(4) == b"\x89PNG", "README's pictures lie outside what is served"
