"""Entries are complete or absent, whatever happens; a changed file is noticed; a full disk is said plainly."""

import errno
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lib import store

BUILT: Counter = Counter()  # how often each folder was built


def get(key="k", kind="run", extra=lambda folder: None):
    def build(folder):
        extra(folder)
        store.write_tensors(folder / "w.safetensors", {"w": torch.arange(3)})
        BUILT[folder] += 1

    return store.get_or_build(kind, key, build, {"seed": 0})


@pytest.mark.parametrize("damage", [None, b"flip", b"", b"[]", b"{}", b"null"])
@pytest.mark.parametrize("name", ["w.safetensors", "DONE"])
def test_damage_is_noticed_and_the_entry_rebuilt(name, damage, recwarn):
    file, content = get() / name, (get() / name).read_bytes()
    file.unlink() if damage is None else file.write_bytes(content[:-1] + b"\x01" if damage == b"flip" else damage)
    assert get() == get() and file.read_bytes() == content and BUILT[get()] == 2
    assert [f"{name} missing or" in str(w.message) for w in recwarn] == [True] * ((name, damage) != ("DONE", None))


def test_an_unfinished_entry_is_continued_and_foreign_files_do_no_harm():
    def interrupted(folder):
        for name in ("half.json", ".writing-1-w", "foreign/file", ".DS_Store"):
            store.write_bytes(folder / name, b"1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(extra=interrupted)
    assert store.entries().iloc[0].tolist() == ["run", "k", "unfinished", 0.0, '{ "seed": 0 }']
    (get() / ".DS_Store").write_text("2")
    assert not (get() / ".writing-1-w").exists() and (get() / "half.json").exists()
    assert BUILT[get()] == 1 and store.finished("run", "k") and store.entries()["state"].tolist() == ["done"]


def test_a_checkpoint_that_is_damaged_or_anothers_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    store.write_checkpoint(path, {"a": torch.arange(4.0).reshape(2, 2).T}, "mine")
    assert store.read_checkpoint(path, "mine")["a"].tolist() == [[0, 2], [1, 3]]
    whole = path.read_bytes()
    for content, name in ((whole, "other"), (b"", "mine"), (whole[:50], "mine"), (whole[:-1] + b"\x09", "mine")):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="damaged, or belongs to another run"):
            assert store.read_checkpoint(path, name) is None


def test_rebuild_treats_runs_and_scores_of_before_as_absent_but_not_data():
    kinds = [get(kind=kind).parent.name for kind in ("run", "score", "data")]
    for name in ("about.json", "checkpoint"):
        store.write_json(store.root() / "run" / "begun" / name, {})
    store.rebuild(before=time.time() + 0.02)
    assert not store.finished("run", "k") and store.finished("data", "k")
    time.sleep(0.05)
    assert [BUILT[get(kind=kind)] for kind in kinds * 2] == [2, 2, 1] * 2
    assert not (get("begun") / "checkpoint").exists()


def test_files_of_another_entry_are_noticed_even_with_their_own_digests(recwarn):
    one, other = get("one"), get("other")
    for file in one.iterdir():
        store.write_bytes(other / file.name, file.read_bytes())
    assert BUILT[get("other")] == 2 and "w.safetensors" in str(recwarn[0].message)


def test_a_clock_that_was_set_back_makes_nothing_old():
    store.rebuild(before=time.time() + 3600)
    assert get() == get() and BUILT[get()] == 1


def test_what_cannot_be_written_is_said_and_the_old_file_stays(tmp_path):
    store.write_bytes(tmp_path / "a.json", b"old")
    message = r"a\.json cannot be written: No space left .*CLIPMEM_RUNS.*it continues"
    with pytest.raises(store.StoreError, match=message), store.atomic(tmp_path / "a.json") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_gives_what_is_finished_and_says_what_is_missing():
    get().parent.chmod(0o555)
    with pytest.raises(store.StoreError, match="missing cannot be written: Permission denied"):
        assert BUILT[get()] == 1 and get("missing")


def test_a_store_that_may_only_be_read_is_read_and_what_it_lacks_is_made_in_runs(tmp_path, monkeypatch):
    given, project = get().parent.parent, tmp_path / "project"
    monkeypatch.setattr(store, "ROOT", project)
    monkeypatch.setattr(store.os, "access", lambda path, mode: path != given)  # root may write anywhere
    assert get() == given / "run" / "k" and store.finished("run", "k") and BUILT[get()] == 1
    lacking = get("missing")
    assert lacking == project / "runs" / "run" / "missing" == get("missing") and BUILT[lacking] == 1
    assert store.finished("run", "missing") and not (given / "run" / "missing").exists()


def test_a_tilde_that_is_nobodys_home_is_a_name(monkeypatch):
    monkeypatch.setenv("CLIPMEM_RUNS", "~nobody-here/x")
    assert store.shared().parts[-2:] == ("~nobody-here", "x")


def test_two_that_want_one_entry_build_it_once(capsys):
    with ThreadPoolExecutor(2) as pool:
        assert len({*pool.map(lambda _: get(extra=lambda folder: time.sleep(0.2)), range(2))}) == 1
    assert BUILT[get()] == 1 and "waiting: another process" in capsys.readouterr().out
