"""Several models worked on at once, in threads of one process, with one progress bar for all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import Any

import torch
from tqdm import tqdm

from lib import model as models
from lib.recipes import Recipe

OnProgress = Callable[[float], None]  # is called with the share that is done
DELAY = 2.0  # seconds before progress is shown: what is done sooner needs no bar


class Stopped(KeyboardInterrupt):
    """The reader interrupted; a notebook shows the sentence and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def cores() -> int:
    """Return how many CPU cores this process may use; a container's quota counts, which os.cpu_count() ignores."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or "max": no quota
        return count


def side_by_side() -> int:
    """Return how many models are worked on at once: CLIPMEM_JOBS (`./run_all.sh --jobs N`), else one per CPU core, or
    one on an accelerator.

    One thread per model is faster on the CPU than all cores on one small model (tests/benchmark.py), and the bits of a
    run then do not depend on how many cores there are.
    """
    asked = os.environ.get("CLIPMEM_JOBS") or ("1" if models.device().type != "cpu" else str(cores()))
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"CLIPMEM_JOBS: expected a whole number from 1, got {asked!r}")
    return int(asked)


def run_parallel(what: str, work: Callable[[Recipe, OnProgress], Any], recipes: Sequence[Recipe]) -> list[Any]:
    """Return `work(recipe, on_progress)` for every recipe, in order, several at once in threads of one process.

    A progress bar shows the share that is done; in the logs of run_all.sh it is a line per half minute. Where one
    recipe fails, or the reader interrupts, the others end at their next report.
    """
    shares, stop, lock = dict.fromkeys(recipes, 0.0), Event(), Lock()
    jobs, threads = side_by_side(), torch.get_num_threads()

    def one(recipe: Recipe) -> Any:
        def on_progress(share: float) -> None:
            if stop.is_set():
                raise InterruptedError("stopped because another run failed or was interrupted")
            with lock:
                bar.update(share - shares[recipe])
                shares[recipe] = share

        torch.set_num_threads(max(1, min(threads, cores()) // jobs))
        on_progress(0)
        result = work(recipe, on_progress)
        on_progress(1)
        return result

    try:
        with progress_bar(what, len(shares)) as bar, ThreadPoolExecutor(jobs) as pool:
            try:
                futures = [pool.submit(one, recipe) for recipe in recipes]
                for future in as_completed(futures):  # in this order, the first to fail is met at once
                    future.result()
                return [future.result() for future in futures]
            finally:
                stop.set()
    except KeyboardInterrupt:
        raise Stopped("Stopped. What is trained stays in the store; run the cell again and it continues.") from None
    finally:
        torch.set_num_threads(threads)


def progress_bar(what: str, total: float) -> tqdm:
    """Return a bar that rewrites one line or, in the logs of run_all.sh (CLIPMEM_LOGGED), adds one per half minute.

    There CLIPMEM_LATER, the estimated seconds of the notebooks that follow, is shown as well.
    """
    logged, later = "CLIPMEM_LOGGED" in os.environ, float(os.environ.get("CLIPMEM_LATER") or 0)
    start = "[....] " if logged else ""
    end = f", then about {later / 60:.0f} min for the other notebooks" if later else ""
    return tqdm(
        desc=what,
        total=total,
        file=sys.stdout,
        leave=False,
        miniters=0,
        mininterval=30 if logged else 0.5,
        delay=DELAY,
        bar_format=f"{start}{{desc}}: {{percentage:3.0f}} %, {{elapsed}} so far, {{remaining}} left{end}",
    )
