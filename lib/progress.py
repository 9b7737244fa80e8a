"""How far a notebook is: notebooks and `lib` report it, run_all.sh shows it. Standard library only."""

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_BETWEEN_LINES = 30  # where the output is a file or a pipe
STARTING = {"phase": "starting", "done": 0, "total": 0}
_last: dict = {"phase": None, "time": 0.0}


def report(phase: str, done: float, total: float) -> None:
    """Write how far `phase` is (`done` of `total`, any unit) to the file named by CLIPMEM_PROGRESS.

    Does nothing where that variable is not set, so that everything also runs outside run_all.sh. The first and the last
    report of a phase are always written, those between them at most twice a second. Never raises for a full disk:
    showing progress must not end a training.
    """
    path = os.environ.get("CLIPMEM_PROGRESS")
    now = time.time()
    first_or_last = phase != _last["phase"] or done >= total
    if not path or (not first_or_last and now - _last["time"] < SECONDS_BETWEEN_REPORTS):
        return
    _last.update(phase=phase, time=now)
    temporary = f"{path}.{os.getpid()}"
    with contextlib.suppress(OSError):
        Path(temporary).write_text(json.dumps({"phase": phase, "done": float(done), "total": float(total)}))
        os.replace(temporary, path)


def read(path: Path) -> dict:
    """Return the newest report in `path` (keys phase, done, total), or STARTING if there is none yet."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return STARTING


def clock(seconds: float) -> str:
    """Return 1:05 for 65 s, 1:00:05 for 3605 s."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def status_line(name: str, report: dict, elapsed: float, in_phase: float, first: float) -> str:
    """Return `02_name  train f, seed 0  45 %  elapsed 1:05  remaining 1:10`; times in seconds.

    Remaining is of the phase: the time in it, scaled to what is left of it. `first` is where the phase was first seen.
    """
    done, total = report["done"], report["total"]
    percent = f"{100 * done / total:3.0f} %" if total else "     "
    remaining = clock(in_phase * (total - done) / (done - first)) if done > first and total else "-:--"
    return f"       {name}  {report['phase']:<28} {percent}  elapsed {clock(elapsed)}  remaining {remaining}"


@contextlib.contextmanager
def shown(name: str, path: Path) -> Iterator[None]:
    """Show how far a notebook is by the reports in `path`, until the block ends.

    One line that is rewritten on a terminal; elsewhere a line now and then.
    """
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(name, path, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show(name: str, path: Path, over: threading.Event) -> None:
    terminal = sys.stdout.isatty()
    began = printed = phase_began = time.monotonic()
    phase, first = "", 0.0
    while not over.wait(0.2):
        now, newest = time.monotonic(), read(path)
        if newest["phase"] != phase:
            phase, phase_began, first = newest["phase"], now, newest["done"]
        text = status_line(name, newest, now - began, now - phase_began, first)
        if terminal:
            print("\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K", end="", flush=True)
        elif now - printed >= SECONDS_BETWEEN_LINES:
            printed = now
            print(text, flush=True)
    if terminal:
        print("\r\x1b[K", end="")
