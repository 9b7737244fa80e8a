"""What run_all.sh does once there is an environment: check, run the notebooks in order, and say what was found.

python -m lib.run [smoke|laptop|gpu|paper] [options]      ./run_all.sh --help describes them
"""

import json
import os
import signal
import sys
import time
import uuid
from argparse import Namespace
from collections import Counter
from pathlib import Path

from filelock import FileLock, Timeout

from lib import preflight, progress
from lib.environment import ROOT
from lib.execute import Place, execute
from lib.progress import clock
from lib.recipes import slug


def chosen(project: Path, options: Namespace) -> list[Path]:
    """Return the notebooks to run, in order; none if --only or --from names none."""
    every = sorted(project.glob("notebooks/*.ipynb"))
    named = [path for path in every if path.stem.startswith(options.only or options.start)]
    return named if options.only or not named else every[every.index(named[0]) :]


def run_all(place: Place, options: Namespace, notebooks: list[Path]) -> int:
    """Check, run the notebooks, print the findings. Return the exit status: 0, 1 (one failed) or 2 (refused)."""
    print(f"{options.scale}, {options.dataset}, notebooks to run: {len(notebooks)}", flush=True)
    fine = True
    for check in preflight.checks(options, notebooks, place.runs):
        print(f"{'[OK]  ' if check.ok else '[FAIL]'} {check.name:<12} {check.text}", flush=True)
        fine = fine and check.ok
    if not fine:
        return 2
    executed = place.runs / "executed" / place.name
    executed.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(executed / ".lock", timeout=0):
            done = run_each(place, options, notebooks)
    except Timeout:
        print("[FAIL] another run_all.sh is at this data set and scale. Wait for it, or stop it.", file=sys.stderr)
        return 1
    print_findings(place, done)
    print(f"\n{len(done)} of {len(notebooks)} notebooks done. Reports: {executed}", flush=True)
    return int(len(done) < len(notebooks))


def run_each(place: Place, options: Namespace, notebooks: list[Path]) -> list[Path]:
    """Run the notebooks until one fails, or all with --keep-going; return those that are done."""
    done = []
    for notebook in notebooks:
        if run_one(place, options, notebook):
            done.append(notebook)
        elif not options.keep_going:
            break
    return done


def run_one(place: Place, options: Namespace, notebook: Path) -> bool:
    """Run a notebook, print how it ended, and return whether it is done."""
    began = time.monotonic()
    with progress.shown(notebook.stem, place.file(notebook, ".progress.json")):
        trouble = execute(place, notebook, preflight.given(options, notebook), uuid.uuid4().hex)
    seconds = time.monotonic() - began
    if trouble:
        print_failure(place, options, notebook, seconds, trouble)
    else:
        print(f"[OK]   {notebook.stem}  done in {clock(seconds)}", flush=True)
    return not trouble


def print_failure(place: Place, options: Namespace, notebook: Path, seconds: float, trouble: list[str]) -> None:
    """Print where a notebook failed, why, the last lines that explain it, its log and the command that continues."""
    phase = progress.read(place.file(notebook, ".progress.json"))["phase"]
    again = preflight.command(options, notebook.stem.split("_")[0], os.environ.get("CLIPMEM_COMMAND", "./run_all.sh"))
    print(f"[FAIL] {notebook.stem}  after {clock(seconds)}, phase: {phase}")
    print(f"       {trouble[0]}")
    for line in trouble[1:]:
        print(f"         {line}")
    print(f"       log: {place.file(notebook, '.log')}")
    print(f"       continue: {again}", flush=True)


def findings(place: Place, notebook: Path) -> list[dict]:
    """Return the newest findings of a notebook, run here or committed; a notebook writes them before it is done."""
    path = place.project / "figures" / place.name / "findings.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    return [row for row in rows if row["notebook"] == notebook.stem]


def print_findings(place: Place, notebooks: list[Path]) -> None:
    """Print the findings of these notebooks, one a line: verdict, value [low, high], seeds, claim."""
    print("\nFindings: verdict, value [95 % interval], seeds, claim")
    for notebook in notebooks:
        for row in findings(place, notebook):
            value, low, high = ("-" if row[name] is None else f"{row[name]:.3g}" for name in ("value", "low", "high"))
            interval = f"{value} [{low}, {high}]"
            print(f"{row['verdict']:<28}{interval:<30}{row['seeds']:>2}  {row['finding']}: {row['claim']}")


def print_list(place: Place, notebooks: list[Path]) -> None:
    """Print the notebooks, each with its title, when it was run here, and how many findings have which verdict."""
    for notebook in notebooks:
        first_cell = json.loads(notebook.read_text())["cells"][0]["source"]
        heading = "".join(first_cell).splitlines()[0].lstrip("# ")
        path, when = place.results(notebook), "not run here"
        if path.is_file():
            when = time.strftime("run %Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        counts = Counter(row["verdict"] for row in findings(place, notebook))
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        print(f"{notebook.stem}\n    {heading}\n    {place.name}: {when}; {verdicts or 'no findings'}")


def absolute(dataset: str) -> str:
    """Return a path that exists as absolute, because notebooks run in another folder; anything else as it is."""
    from lib.sources import PRESETS

    path = Path(dataset).expanduser()
    return str(path.absolute()) if dataset not in ("scenes", *PRESETS) and path.exists() else dataset


def open_lab(project: Path) -> None:
    """Become JupyterLab, open at the notebooks, in this Python. Does not return."""
    words = [sys.executable, "-m", "jupyterlab", str(project / "notebooks")]
    words += ["--allow-root"] * (os.geteuid() == 0)  # the only user of many a container
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.execv(sys.executable, words)


def main(words: list[str], project: Path = ROOT) -> int:
    """Do what run_all.sh was asked, and return its exit status. Environment variable CLIPMEM_RUNS: where runs lie."""
    options = preflight.parse(words)
    if options.lab:
        open_lab(project)
    if options.jobs:
        os.environ["CLIPMEM_JOBS"] = str(options.jobs)
    if options.force:
        os.environ["CLIPMEM_BEGUN"] = str(time.time())
    options.dataset = absolute(options.dataset)
    runs = Path(os.environ.get("CLIPMEM_RUNS") or project / "runs").absolute()
    place = Place(project, runs, f"{slug(options.dataset)}-{options.scale}")
    notebooks = chosen(project, options)
    if not notebooks:
        stems = ", ".join(path.stem for path in sorted(project.glob("notebooks/*.ipynb")))
        print(f"no notebook's name starts with {options.only or options.start!r}: {stems}.", file=sys.stderr)
        return 2
    if options.list:
        print_list(place, notebooks)
        return 0
    try:
        return run_all(place, options, notebooks)
    except KeyboardInterrupt:
        print("\nStopped. The same command continues; what is trained stays.", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk above all
        print(f"[FAIL] {error}. What is trained stays; the same command continues.", file=sys.stderr)
        return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    sys.exit(main(sys.argv[1:]))
