"""Runs are complete or absent, whatever happens; a changed file is noticed; a full disk is said plainly."""

import errno
import json
import threading

import pandas as pd
import pytest
import torch

from lib import store


def build(folder):
    store.write_table(folder / "t.parquet", pd.DataFrame({"x": [1, 2]}))
    store.write_tensors(folder / "w.safetensors", {"w": torch.arange(3)})


def test_built_once_then_found(runs):
    calls = []

    def counted(folder):
        calls.append(folder)
        build(folder)

    first = store.obtain("run", "k", {"seed": 0}, counted)
    assert store.obtain("run", "k", {"seed": 0}, counted) == first and len(calls) == 1
    assert store.finished("run", "k") and not store.finished("run", "other")
    assert torch.equal(store.read_tensors(first / "w.safetensors")["w"], torch.arange(3))


def test_an_interrupted_build_is_not_finished_and_keeps_its_files(runs):
    def interrupted(folder):
        store.write_json(folder / "half.json", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.obtain("run", "k", {}, interrupted)
    assert not store.finished("run", "k") and (runs / "run" / "k" / "half.json").is_file()
    assert store.entries()["state"].tolist() == ["unfinished"]


@pytest.mark.parametrize("damage", ["change", "delete", "truncate DONE"])
def test_damage_is_noticed_and_made_again(runs, damage):
    folder = store.obtain("run", "k", {}, build)
    if damage == "change":
        (folder / "w.safetensors").write_bytes(b"x")
    elif damage == "delete":
        (folder / "t.parquet").unlink()
    else:
        (folder / "DONE").write_text("{")
    store._problems.cache_clear()
    assert store.main(["verify"]) == 1
    with pytest.warns(UserWarning, match=r"Put aside as k\.broken"):
        store.obtain("run", "k", {}, build)
    assert store.problems(folder) == [] and store.main(["verify"]) == 0


def test_full_disk_says_what_to_do_and_leaves_no_half_file(runs, monkeypatch):
    def full(*args, **kwargs):
        args[1].write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(store.StoreError, match=r"disk is full.*give the same command again"):
        store.obtain("run", "k", {}, build)
    assert {p.name for p in (runs / "run" / "k").iterdir()} == {"about.json"}
    monkeypatch.undo()
    store.os.environ["CLIPMEM_RUNS"] = str(runs)
    assert store.obtain("run", "k", {}, build).is_dir()


def test_two_at_once_build_once(runs):
    entered, calls = threading.Event(), []

    def slow(folder):
        calls.append(folder)
        entered.wait(1)
        build(folder)

    threads = [threading.Thread(target=store.obtain, args=("run", "k", {}, slow)) for _ in range(2)]
    for t in threads:
        t.start()
    entered.set()
    for t in threads:
        t.join()
    assert len(calls) == 1


def test_list_and_prune(runs, capsys):
    store.obtain("run", "good", {"seed": 1}, build)
    old = store.obtain("run", "old", {}, build)
    (old / "about.json").write_text(json.dumps({"version": -1}))
    assert store.main(["list"]) == 0
    assert "good" in capsys.readouterr().out
    store.main(["prune"])
    assert old.is_dir()
    store.main(["prune", "--yes"])
    assert not old.exists() and store.finished("run", "good")


def test_notebooks_that_use_a_run_are_remembered_and_listed(runs, capsys):
    for key in ("k1", "k2", "k3"):
        store.obtain("run", key, {"seed": 0}, build)
    store.obtain("score", "k2-views5", {"run": "k2"}, build)
    store.note_use("scenes-smoke", "04_mitigation", ["k1", "k2"])
    store.note_use("my.photos-laptop", "01_paradigms", ["k2"])
    assert store.uses() == {"k1": "04", "k2": "01, 04"}
    used = store.entries().set_index("key")["notebooks"]
    assert used.to_dict() == {"k1": "04", "k2": "01, 04", "k2-views5": "01, 04", "k3": ""}
    store.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert "notebooks" in lines[1] and [line for line in lines if " k2 " in line and "01, 04" in line]
    store.note_use("scenes-smoke", "04_mitigation", ["k3"])  # its plan has changed
    assert store.uses() == {"k3": "04", "k2": "01"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    store.write_bytes(path, b"old")
    with pytest.raises(TypeError):
        store.write_bytes(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
