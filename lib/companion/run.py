"""Run the notebooks in order with papermill, and say at the end what was found: `./run_all.sh --help`."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import papermill
import torch
from filelock import FileLock, Timeout
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi

from lib import runs, store
from lib.companion import course, findings, parse, publish
from lib.photos import PRESETS
from lib.recipes import CONDITIONS

LARGE = ("gpu", "paper", "paper16")  # scales for an accelerator
TAIL = 14  # lines of a traceback that are shown: enough for the failing cell


def chosen(options: Namespace) -> list[Path]:
    """Return the notebooks to run, in order. Raise ValueError where none fits."""
    every, word = sorted(store.ROOT.glob("notebooks/[0-9]*.ipynb")), options.only or options.start
    number = f"{int(word):02d}_" if word.isdecimal() else ""
    fits = [path for path in every if (path.stem.startswith(number) if number else word in path.stem)]
    if not fits:
        raise ValueError(f"no notebook is called {word!r}: {', '.join(path.stem for path in every)}")
    return fits if options.only else every[every.index(fits[0]) :]


def absolute(text: str) -> str:
    """Return models, files or columns, with commas between, with absolute paths: notebooks run in another folder."""
    parts = [part.strip().rpartition(":") for part in text.split(",")]
    paths = [(head + colon, path, Path(path).expanduser()) for head, colon, path in parts]
    return ",".join(head + (str(there.resolve()) if path and there.exists() else path) for head, path, there in paths)


def check(options: Namespace, notebooks: Sequence[Path]) -> None:
    """Raise ValueError for what would make the notebooks fail, the cheapest check first."""
    stems = [path.stem for path in notebooks]
    own = any(stem.startswith("05") for stem in stems)
    if (options.models or options.seen) and (not own or options.publish):
        raise ValueError("--models and --seen are for notebook 05 (--only 05), and its results are not published.")
    if options.publish and (reason := publish.refusal(options.scale, options.seeds, findings.commit())):
        raise ValueError(reason)
    if options.scale in LARGE and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ValueError(f"{options.scale} would take weeks without a GPU, and torch finds none: use laptop")
    for stem in [stem for stem in stems if stem in CONDITIONS]:
        runs.plan(stem, options.scale, options.dataset, options.captions, options.image)


def show_bar(text: str) -> None:
    """Show the last state of a progress bar in what a notebook prints, and nothing else of it: tqdm begins each state
    with a carriage return, and ends with an empty one."""
    bar = text.rpartition("\r")[2].rstrip()
    if "\r" in text and sys.stdout.isatty():
        print(f"\r{bar}\x1b[K", end="", flush=True)
    elif "\r" in text and bar:
        print(bar, flush=True)


def run_one(notebook: Path, executed: Path, options: Namespace) -> bool:
    """Execute a notebook with the options that it declares as parameters, write it as HTML, and return whether it is
    done: papermill marks the cells of a killed kernel as completed, so its results file must be of this very run."""
    began, run_id = time.monotonic(), uuid.uuid4().hex
    os.environ |= {"CLIPMEM_RUNS": str(store.root()), "CLIPMEM_RUN_ID": run_id}
    print(f"[....] {notebook.stem}", flush=True)
    lines: list[str] = []
    try:
        declared = papermill.inspect_notebook(str(notebook))
        given = {name: value for name, value in vars(options).items() if name in declared}
        bars = SimpleNamespace(write=show_bar, flush=lambda: None)
        quiet = {"progress_bar": False, "stdout_file": bars, "extra_arguments": ["--log-level=ERROR"]}  # of the kernel
        about = {"kernel_name": "python3", "cwd": notebook.parent, **quiet}
        papermill.execute_notebook(str(notebook), str(executed), given, **about)
        results = findings.results_folder(options.dataset, options.scale) / f"{notebook.stem}.json"
        if not results.is_file() or json.loads(results.read_text(encoding="utf-8"))["run_id"] != run_id:
            lines = ["it ended before its last cell, which writes the results: did the kernel die?"]
    except papermill.PapermillExecutionError as error:
        told = strip_ansi("\n".join(error.traceback)).splitlines()
        lines = [f"cell [{error.exec_count}]: {error.ename}: {error.evalue}", *filter(str.strip, told[-TAIL:])]
    except Exception as error:  # a kernel that died, a full disk: all end this notebook
        lines = [f"{type(error).__name__}: {error!s:.500}", "If memory ran out: --jobs 1 needs least."]
    duration = f"{(time.monotonic() - began) / 60:.1f} minutes"
    if lines:
        print(f"[FAIL] {notebook.stem} after {duration}", *lines, f"see {executed}", sep="\n       ", flush=True)
        return False
    template = Path(__file__).with_name("executed.html.j2").read_text(encoding="utf-8")
    html, _ = HTMLExporter(raw_template=template).from_filename(str(executed))
    store.write_bytes(executed.with_suffix(".html"), html.encode())
    print(f"[OK]   {notebook.stem} done in {duration}", flush=True)
    return True


def print_findings(options: Namespace, done: Sequence[Path]) -> None:
    """Print what notebooks found and how that compares with the reference, and write an index of their pages."""
    own = findings.results_folder(options.dataset, options.scale)
    found = [json.loads((own / f"{path.stem}.json").read_text(encoding="utf-8"))["findings"] for path in done]
    rows = pd.DataFrame([row for one in found for row in one], columns=[*findings.Finding.__annotations__])
    shown = rows[["finding", "verdict", "value", "low", "high", "claim"]].round(3)
    if len(rows):
        print("\n" + shown.to_string(index=False, na_rep="-"))
    reference = findings.reference_folder(options.dataset, options.scale)
    if len(rows) and (reference / "findings.json").is_file() and options.scale != "smoke":
        both = rows.merge(findings.read_reference(reference), on="finding", suffixes=("", "_there"))
        differ = both.loc[both["verdict"] != both["verdict_there"], "finding"]
        same = f"{len(both) - len(differ)} of {len(both)} verdicts as in the reference"
        print(f"{same}; others: {', '.join(differ) or '-'}")
    pages, index = sorted((store.root() / "executed" / own.name).glob("*.html")), store.root() / f"{own.name}.html"
    links = "".join(f'<li><a href="executed/{own.name}/{path.name}">{path.stem}</a></li>' for path in pages)
    page = f"<!doctype html><meta charset=utf-8><title>{own.name}</title><h1>{own.name}</h1><ul>{links}</ul>"
    store.write_bytes(index, (page + shown.to_html(index=False)).encode())
    print(f"Figures and tables: {own}\nNotebooks: {index.as_uri()}", flush=True)


def print_list(options: Namespace, notebooks: Sequence[Path]) -> None:
    """Print the notebooks, each with its title, when it was run here, and the verdicts of the reference."""
    known = findings.all_references()
    for path in notebooks:
        own = findings.results_folder(options.dataset, options.scale) / f"{path.stem}.json"
        here = time.strftime("run %Y-%m-%d %H:%M", time.localtime(own.stat().st_mtime)) if own.is_file() else "not run"
        counts = known.loc[known["notebook"] == path.stem, "verdict"].value_counts()
        print(f"{path.stem}  {publish.title(path)}\n    here: {here}")
        print(f"    reference: {', '.join(f'{count} {verdict}' for verdict, count in counts.items()) or 'nothing'}")


def open_lab(words: Sequence[str]) -> None:
    """Become JupyterLab at the tour, in this Python. Does not return."""
    os.environ["CLIPMEM_RUNS"] = str(store.root())
    own = [f"--ServerApp.root_dir={store.ROOT}", "--LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb"]
    root = ["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *own, *root, *words])


def run_all(options: Namespace, notebooks: Sequence[Path]) -> int:
    """Check, train on a cluster where that was asked, run the notebooks, say what they found, publish."""
    check(options, notebooks)
    where = (options.scale, options.dataset, options.captions, options.image)
    stems = [path.stem for path in notebooks]
    if options.share or options.ray:
        order = {"notebooks": stems, "where": where}
        order |= {name: getattr(options, name) for name in ("seeds", "force", "share", "ray")}
        status = subprocess.run([sys.executable, "-P", "-m", "lib.companion.cluster", json.dumps(order)]).returncode
        if options.share or status:
            return status
    elif options.force:
        runs.forget(runs.wanted(stems, options.seeds, *where))
        store.remove("embedding")
    executed = store.root() / "executed" / findings.results_folder(options.dataset, options.scale).name
    executed.mkdir(parents=True, exist_ok=True)
    done = []
    with FileLock(executed / ".lock", timeout=0):
        for notebook in notebooks:
            if run_one(notebook, executed / notebook.name, options):
                done.append(notebook)
            elif not options.keep_going:
                break
        print_findings(options, done)
        print(f"{len(done)} of {len(notebooks)} notebooks done.", flush=True)
        if options.publish and done == notebooks:
            folder = publish.publish(options.dataset, options.scale, stems, executed)
            print(f"Published in {folder} and figures/README.md")
    return int(done != notebooks)


def set_up(options: Namespace) -> None:
    """Set what the notebooks are to find: absolute paths, environment variables; let every signal end it as Ctrl-C."""
    if Path(options.dataset).expanduser().exists() and options.dataset not in ("scenes", *PRESETS):
        options.dataset = str(Path(options.dataset).expanduser().resolve())
    options.models, options.seen = absolute(options.models), absolute(options.seen)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a kernel `python3` in the user's home may be another Python
    os.environ |= {f"CLIPMEM_{n.upper()}": str(v) for n in ("jobs", "precision") if (v := getattr(options, n))}
    if not sys.stdout.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # seconds; in a log, progress is a line per half minute
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)


def main(words: list[str]) -> int:
    """Do what run_all.sh was asked, and return its exit status."""
    options = parse(words)
    set_up(options)
    try:
        if options.lab is not None:
            open_lab(options.lab)
        elif options.course:
            course.build(Path(options.course).expanduser())
        elif options.list:
            print_list(options, chosen(options))
        else:
            return run_all(options, chosen(options))
        return 0
    except ValueError as error:  # what cannot be done, as is known before anything runs; DataError is one
        print(f"[FAIL] {error}", file=sys.stderr)
        return 2
    except Timeout:
        print("[FAIL] another run_all.sh is at this data set and scale. Wait for it, or stop it.", file=sys.stderr)
    except OSError as error:  # a full disk above all
        print(f"[FAIL] {error}. What is trained stays; the same command continues.", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped. The same command continues; what is trained stays.", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
