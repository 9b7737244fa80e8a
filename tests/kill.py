"""Kill a run at random moments, give the same command again, and compare every table with an uninterrupted run's.

    python tests/kill.py [COUNT] [SEED]     25 kills if not given; about half an hour on two cores

Each time, a run in a new store, or only its kernel, is killed at a random moment between its start and the last page
that it publishes, and the same command is given until it ends well. In this copy of the project scale smoke may be
published, so that publishing is killed, too."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
from conftest import commit_project, copy_project

COMMAND = ("smoke", "--only", "02", "--seeds", "3", "--publish")
PATCHES = {"publish.py": ('if scale == "smoke":', "if False:"), "findings.py": ('= "not judged"', '= "inconclusive"')}
KERNEL = "only the kernel by SIGKILL"
HOW = {"all by SIGKILL": signal.SIGKILL, "by SIGTERM": signal.SIGTERM, "by Ctrl-C": signal.SIGINT, KERNEL: None}
CONTINUED = 3  # how often at most the command is given again; once is enough where nothing else fails


def copied(folder: Path) -> Path:
    """Return a copy of the project, under git, which would publish smoke."""
    copy_project(folder)
    for name, (old, new) in PATCHES.items():
        path = folder / "lib" / "companion" / name
        assert path.read_text().count(old) == 1, old
        path.write_text(path.read_text().replace(old, new))
    commit_project(folder)
    return folder


def start(project: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the run in a process group of its own, as a shell with job control would."""
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix, "CLIPMEM_RUNS": str(project / "runs"), "PYTHONPATH": ""}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # it is ignored in the background of a shell
    with log.open("ab") as output:
        about: dict = {"env": environ, "stdout": output, "stderr": output, "start_new_session": True}
        return subprocess.Popen(["bash", str(project / "run_all.sh"), *COMMAND], preexec_fn=heed, **about)


def tables(project: Path) -> dict[str, bytes]:
    """Return the bytes of every table of the run, and of what it published."""
    paths = [*project.glob("runs/results/*/*.csv"), *project.glob("figures/scenes-smoke/*.csv")]
    return {str(path.relative_to(project)): path.read_bytes() for path in paths}


def fresh(project: Path) -> None:
    """Remove what a run leaves."""
    shutil.rmtree(project / "runs", ignore_errors=True)
    subprocess.run(["git", "clean", "-qfd", "figures"], cwd=project, check=True)
    subprocess.run(["git", "checkout", "-q", "."], cwd=project, check=True)


def kill(process: subprocess.Popen[bytes], how: str) -> None:
    """Kill a run, or its kernel, and wait for its end."""
    if how == KERNEL:
        for one in psutil.Process(process.pid).children(recursive=True):
            if "ipykernel" in " ".join(one.cmdline()):
                one.kill()
    elif how == "by SIGTERM":
        os.kill(process.pid, HOW[how])
    else:  # the whole group, as a terminal does
        os.killpg(process.pid, HOW[how])
    process.wait(timeout=120)


def survives(project: Path, log: Path, moment: float, how: str) -> str:
    """Kill a run after some seconds and continue to the end; return what went wrong, else ""."""
    fresh(project)
    process = start(project, log)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        kill(process, how)
    ended = any(start(project, log).wait() == 0 for _ in range(CONTINUED))
    return "" if ended else f"did not end well after {CONTINUED} more calls"


def main(count: int = 25, seed: int = 0) -> int:
    """Kill `count` times, print a line each; return 0 where all tables are equal."""
    rng, wrong = random.Random(seed), 0
    with TemporaryDirectory() as folder:
        project, log = copied(Path(folder) / "a project"), Path(folder) / "log"
        began = time.monotonic()
        assert start(project, log).wait() == 0, log.read_text()
        duration, expected = time.monotonic() - began, tables(project)
        print(f"uninterrupted: {duration:.0f} seconds, {len(expected)} tables", flush=True)
        for number in range(count):
            moment, how = rng.uniform(0, duration), rng.choice([*HOW])
            said, found = survives(project, log, moment, how), tables(project)
            said = said or ", ".join(name for name in expected if found.get(name) != expected[name])
            wrong += bool(said)
            print(f"{number + 1:>3}  after {moment:5.1f} s, {how:<28} {said or 'equal'}", flush=True)
        if wrong:
            print(log.read_text())
    print(f"{count - wrong} of {count} equal")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
