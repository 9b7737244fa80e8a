"""What run_all.sh does once there is an environment: check, run the notebooks in order, and say what was found.

python -m lib.run [smoke|laptop|gpu|paper] [options]      ./run_all.sh --help describes them
"""

import errno
import os
import signal
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from lib import execute, progress
from lib.options import OptionError, Options, Place, command, nearest, parse
from lib.preflight import given, preflight, wanted
from lib.screen import clock, findings_table, listing, show, watch


def project_place() -> Place:
    """Return this project's folders; the environment variable CLIPMEM_RUNS moves runs elsewhere."""
    runs = Path(os.environ.get("CLIPMEM_RUNS") or execute.ROOT / "runs").absolute()
    return Place(execute.ROOT, execute.ROOT / "notebooks", runs)


def chosen(place: Place, options: Options) -> list[Path]:
    """Return the notebooks to run, in order. Raises OptionError if --only or --from names none."""
    every = sorted(path for path in place.notebooks.glob("*.ipynb"))
    if not every:
        raise OptionError(f"{place.notebooks} holds no notebook.")
    wish = options.only or options.start
    named = [path for path in every if path.stem.startswith(wish)]
    if not named:
        stems = [path.stem for path in every]
        raise OptionError(f"no notebook's name starts with {wish!r}: {', '.join(stems)}.{nearest(wish, stems)}")
    return named if options.only else every[every.index(named[0]) :]


def run_one(place: Place, options: Options, notebook: Path) -> bool:
    """Run a notebook, print how it ended, and return whether it is done."""
    job = execute.Job(
        notebook=str(notebook),
        folder=str(place.folder("executed", options)),
        results=str(place.results(options, notebook)),
        runs=str(place.runs),
        project=str(place.project),
        run_id=uuid.uuid4().hex,
        parameters=given(notebook, wanted(options)),
    )
    process = execute.start(job)
    try:
        seconds = watch(process, job)
    finally:
        process.kill()  # after Ctrl-C; its kernel follows within a second
        process.wait()
    trouble = execute.failure(job, process.returncode)
    if trouble:
        print_failure(options, job, seconds, trouble)
        return False
    print(f"[OK]   {notebook.stem}  done in {clock(seconds)}", flush=True)
    return True


def print_failure(options: Options, job: execute.Job, seconds: float, trouble: list[str]) -> None:
    """Print where a notebook failed, why, the last lines that explain it, its log and the command that continues."""
    phase = (progress.read(job.file(".progress.json")) or {"phase": "before its first phase"})["phase"]
    cell = (execute.read_results(job.file(".error.json")) or {}).get("cell")
    stem = Path(job.notebook).stem
    print(f"[FAIL] {stem}  after {clock(seconds)}, phase: {phase}{f', cell [{cell}]' if cell else ''}")
    print(f"       {trouble[0]}")
    print("".join(f"         {line}\n" for line in trouble[1:]), end="")
    name = os.environ.get("CLIPMEM_COMMAND", "./run_all.sh")
    print(f"       log: {job.file('.log')}\n       continue: {command(options, stem.split('_')[0], name)}", flush=True)


def run_all(place: Place, options: Options) -> int:
    """Check, run the chosen notebooks, print the findings. Return the exit status: 0, 1 (one failed) or 2 (refused)."""
    notebooks = chosen(place, options)
    print(f"{options.scale}, {options.dataset}: {len(notebooks)} notebook{'s' * (len(notebooks) > 1)}", flush=True)
    if not all([show(check) for check in preflight(options, notebooks, place.runs)]):
        return 2
    place.folder("executed", options).mkdir(parents=True, exist_ok=True)
    done = []
    try:
        with FileLock(place.folder("executed", options) / ".lock", timeout=0):
            for notebook in notebooks:
                if run_one(place, options, notebook):
                    done.append(notebook)
                elif not options.keep_going:
                    break
    except Timeout:
        print("[FAIL] another run_all.sh is at this data set and scale. Wait for it, or stop it.", file=sys.stderr)
        return 1
    print("\n" + (findings_table(place, options, done) or "No findings."))
    print(f"\n{len(done)} of {len(notebooks)} notebooks done. Reports: {place.folder('executed', options)}", flush=True)
    return int(len(done) < len(notebooks))


def lab(place: Place) -> NoReturn:
    """Become JupyterLab, open at the notebooks, in this Python. Does not return."""
    words = [sys.executable, "-m", "jupyterlab", str(place.notebooks)]
    words += ["--allow-root"] * (os.geteuid() == 0)  # the only user of many a container
    os.execve(sys.executable, words, execute.environ(place.runs))


def absolute(dataset: str) -> str:
    """Return a path that exists as absolute, because notebooks run in another folder; anything else as it is."""
    from lib.sources import PRESETS

    path = Path(dataset).expanduser()
    return str(path.absolute()) if dataset not in ("scenes", *PRESETS) and path.exists() else dataset


def main(words: list[str], place: Place | None = None) -> int:
    """Do what run_all.sh was asked, and return its exit status."""
    place = place or project_place()
    try:
        options = parse(words)
        options = replace(options, dataset=absolute(options.dataset))
        if options.lab:
            lab(place)
        if options.list:
            print(listing(place, options, chosen(place, options)))
            return 0
        return run_all(place, options)
    except OptionError as error:
        print(f"{error} ./run_all.sh --help lists what there is.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command continues; what is trained stays.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"[FAIL] the disk of {place.runs} is full. Free some space and run the same command.", file=sys.stderr)
        return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    sys.exit(main(sys.argv[1:]))
