"""A run that is killed, damaged or out of room: the same command completes it, with the same tables.

tests/kill.py is the long form of the first test.
"""

import random
import shutil
import subprocess
import sys
from dataclasses import replace

import kill
import pytest
from conftest import BRIEF, ROOT

from lib import runs, scores, store, tables

SCORED = replace(BRIEF, seed=7)
ROOM = 6  # megabytes, of which all but one are taken: too few for the data and a model of the tiny world


def test_a_run_that_is_killed_twice_is_continued_to_the_same_tables(tmp_path):
    project, log, rng = kill.copied(tmp_path / "a project"), tmp_path / "log", random.Random()
    assert kill.start(project, log).wait() == 0, log.read_text()
    expected = kill.tables(project)
    assert any(name.startswith("figures/scenes-smoke/02_") for name in expected)
    moments = [(rng.uniform(4, 20), how) for how in rng.sample([*kill.HOW], 2)]
    assert kill.survives(project, log, moments) == "", f"{moments}\n{log.read_text()}"
    assert kill.tables(project) == expected, moments


def measured():
    """Return what a run and its scores hold, from the store or made now."""
    table = tables.cached("test", SCORED, lambda model, r: scores.measure(model, r, runs.prepare(r.data), views=1))
    return [table, runs.history(SCORED), runs.evaluations(SCORED)]


DAMAGE = {
    "flipped": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "halved": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "deleted": None,
    "of another": lambda content: b"\0" * len(content),
}
FILES = ["run/weights.safetensors", "run/history.parquet", "run/evaluations.parquet", "run/made.json", "run/about.json"]
FILES += ["run/DONE", "score/table.parquet", "score/about.json", "score/DONE"]
FILES += [f"data/{name}" for name in ("images.bin", "ids.npy", "table.parquet", "content.json", "about.json", "DONE")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a store with a run, its scores and its data, and what they hold."""
    folder = tmp_path_factory.mktemp("whole") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPMEM_RUNS", str(folder))
        patch.setenv("CLIPMEM_PRECISION", "fp32")
        runs.prepare.cache_clear()
        found = measured()
    kinds = {f"{path.parts[-3]}/{path.name}" for path in folder.glob("*/*/*")}
    assert kinds == set(FILES), "a kind of file that the test below does not damage"
    return folder, found


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_file_of_the_store_is_noticed_when_damaged_and_made_again(whole, own_store, name, damage):
    shutil.copytree(whole[0], own_store)
    kind, file = name.split("/")
    (path,) = own_store.glob(f"{kind}/*/{file}")
    content = path.read_bytes()
    path.unlink() if damage == "deleted" else path.write_bytes(DAMAGE[damage](content))
    runs.prepare.cache_clear()
    quiet = file == "DONE" and damage == "deleted"  # that is an unfinished entry, which is continued
    if quiet:
        found = measured()
    else:
        named = r"\S+" if file == "DONE" else file  # DONE may still be read, with a wrong digest of another file
        with pytest.warns(UserWarning, match=rf"{path.parent}: (.*, )?{named}.* missing or changed\. It is made again"):
            found = measured()
    assert all(one.equals(other) for one, other in zip(found, whole[1], strict=True))
    if file not in ("made.json", "DONE"):  # the seconds that a run took, and their digest, differ
        assert path.read_bytes() == content


def test_a_full_disk_is_said_with_the_file_and_the_same_call_continues_when_there_is_room(tmp_path, monkeypatch):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        monkeypatch.setenv("CLIPMEM_RUNS", str(place))
        (place / "other").write_bytes(bytes((ROOM - 1) * 2**20))
        with pytest.raises(store.StoreError, match=r"small/\S+ cannot be written: No space left .* Make room"):
            measured()
        (place / "other").unlink()
        assert len(measured()) == 3
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # images are still mapped


def test_a_store_that_was_moved_is_found_and_nothing_is_made_again(whole, own_store, monkeypatch):
    shutil.copytree(whole[0], own_store / "elsewhere")
    monkeypatch.setenv("CLIPMEM_RUNS", str(own_store / "elsewhere"))
    monkeypatch.setattr(store, "write_bytes", None)  # nothing may be written
    assert all(one.equals(other) for one, other in zip(measured(), whole[1], strict=True))


def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path):
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from lib import store
try:
    store.write_bytes(Path({str(tmp_path)!r}) / "file", bytes(2**20))
except store.StoreError as error:
    print(error)
"""
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "", sys.executable, "-c", script]  # 100 KiB
    said = subprocess.run(limited, capture_output=True, text=True)
    assert "cannot be written: File too large. What was finished is kept." in said.stdout, said.stderr
    assert not (tmp_path / "file").exists()
