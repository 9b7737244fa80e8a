"""Entries are complete or absent, whatever happens; a changed file is noticed, and its entry made again."""

import subprocess
import sys

import pytest
from conftest import BRIEF, ROOT

from lib import runs, scores, store
from lib.data import prepare

PROCESS = """import time; from lib import store
store.get_or_build("run", "k", lambda folder: print("built") or time.sleep(1), {})"""


def test_damaged_data_models_and_scores_are_noticed_and_made_again(own_store, tmp_path, monkeypatch):
    def measured():
        table = runs.cached("test", BRIEF, lambda model, recipe: scores.measure(model, recipe, prepare(recipe.data), 1))
        return [table, runs.history(BRIEF), runs.evaluations(BRIEF)]

    before = measured()
    for file in ("run/*/weights.safetensors", "run/*/DONE", "data/*/images.bin", "score/*-test/table.parquet"):
        (path,) = own_store.glob(file)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink() if path.suffix == ".parquet" else path.write_bytes(content)
    monkeypatch.setenv("CLIPMEM_RUNS", str(own_store.rename(tmp_path / "moved")))  # checked again, as in a new process
    prepare.cache_clear()
    with pytest.warns(UserWarning) as said:
        assert all(one.equals(other) for one, other in zip(measured(), before, strict=True))
    assert sorted({str(one.message).split("moved/")[1].split("/")[0] for one in said}) == ["data", "run", "score"]
    assert runs.missing([BRIEF]) == []


def test_an_unfinished_entry_is_continued():
    def build(folder):
        found.append(sorted(path.name for path in folder.iterdir()))
        for name in ("half.json", f".writing-{len(found)}-w"):
            (folder / name).touch()
        if len(found) == 1:
            raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        store.get_or_build("run", "k", build, {})
    assert not store.finished("run", "k")
    store.get_or_build("run", "k", build, {})
    assert found == [["about.json"], ["about.json", "half.json"]] and store.finished("run", "k")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    store.write_bytes(tmp_path / "a.json", b"old")
    with pytest.raises(OSError, match="no space"), store.atomic(tmp_path / "a.json") as temporary:
        temporary.write_bytes(b"half")
        raise OSError("no space left")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_two_processes_that_want_one_entry_build_it_once():
    command = [sys.executable, "-c", PROCESS]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert "".join(one.communicate()[0] for one in both).count("built") == 1 and store.finished("run", "k")
