"""Shared by all tests: one thread, fp32, no network, a temporary store, and a small world of scenes."""

import os
import shutil
import subprocess

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from lib.data import prepare
from lib.recipes import DataConfig, Recipe

ROOT = Path(__file__).resolve().parent.parent
TINY = Recipe(DataConfig("scenes", 32, 60, 80, 40, 40, 40), model="smoke", epochs=4, batch=25, evaluations=2)
BRIEF = replace(TINY, epochs=2)  # what `trained` holds runs of

torch.set_num_threads(1)
settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)  # the same examples in every run
settings.load_profile("quick")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """Give every test a store of its own, and products in fp32 on the CPU."""
    for name in [name for name in os.environ if name.startswith("CLIPMEM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLIPMEM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CLIPMEM_PRECISION", "fp32")
    monkeypatch.setenv("CLIPMEM_DEVICE", "cpu")  # on a Mac, too
    prepare.cache_clear()
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="session")
def data(shelf):
    """The tiny world, prepared once for all tests; nobody changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPMEM_RUNS", str(shelf))
        return prepare(TINY.data)


@pytest.fixture
def trained(own_store, shelf, monkeypatch):
    """Share one store between all tests that only read runs; return the recipe to vary."""
    monkeypatch.setenv("CLIPMEM_RUNS", str(shelf))
    return BRIEF


def copy_project(folder):
    """Copy to a folder what git would take from this tree; return the folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(lambda name: (ROOT / name).is_file(), names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def commit_project(folder):
    """Put all that is in a folder under git."""
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "copy"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
