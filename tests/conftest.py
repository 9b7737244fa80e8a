"""Shared by all tests: one thread, no network, runs in a temporary folder, and a small world of scenes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.data import prepare
from lib.recipes import Data, Recipe

ROOT = Path(__file__).resolve().parent.parent
TINY = Recipe(Data("scenes", 32, 60, 40, 40, 40, 40), model="smoke", epochs=4, batch=25, looks=2)
BRIEF = replace(TINY, epochs=2)  # what `trained` holds runs of

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Every test has a store of its own."""
    monkeypatch.setenv("CLIPMEM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return prepare(TINY.data, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny():
    return replace(TINY)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def trained(runs, shelf, monkeypatch):
    """One store for all tests that only read runs: what one of them trains, the others find. The recipe to vary."""
    monkeypatch.setenv("CLIPMEM_RUNS", str(shelf))
    return replace(BRIEF)
