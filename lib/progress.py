"""How far a notebook is: notebooks and `lib` report it, run_all.sh shows it. Standard library only."""

import json
import os
import time
from pathlib import Path

SECONDS_BETWEEN_REPORTS = 0.5
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
    text = json.dumps({"phase": phase, "done": float(done), "total": float(total), "time": now})
    temporary = f"{path}.{os.getpid()}"
    try:
        Path(temporary).write_text(text)
        os.replace(temporary, path)
    except OSError:
        return


def read(path: Path) -> dict | None:
    """Return the newest report in `path` (keys phase, done, total, time), or None if there is none yet."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
