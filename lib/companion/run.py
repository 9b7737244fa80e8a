"""Run the notebooks in order with papermill, and say at the end what was found: `./run_all.sh --help`."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import papermill
import torch
from filelock import FileLock, Timeout
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi

from lib import runs, store
from lib.companion import course, findings, publish
from lib.photos import PRESETS
from lib.recipes import CONDITIONS, SCALES

ABOUT = """smoke: minutes; shows that the machinery works and decides nothing. laptop: the findings, on a CPU. deep: few
pairs seen often, for finding 1 (--only 01). gpu, paper, paper16: for an accelerator. Results go to runs/ (another folder:
CLIPMEM_RUNS). Whatever stops a run, the same command continues it. Exit status: 0 done, 1 something failed, 2 refused
before the start, 130 stopped. A claim that does not hold is a result, not a failure."""
LARGE = ("gpu", "paper", "paper16")  # scales for an accelerator
TAIL = 14  # lines of a traceback that are shown: enough for the failing cell


class Refused(Exception):
    """What was asked for cannot be done, as is known before anything runs."""


def at_least_one(text: str) -> int:
    """Return a whole number from 1 on."""
    if not (text.isdecimal() and int(text)):
        raise ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def share(text: str) -> str:
    """Return I/N with I from 1 to N."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ArgumentTypeError(f"expected I/N with I from 1 to N, such as 3/16, got {text!r}")
    return text


def parse(words: list[str]) -> Namespace:
    """Return the options of a command line."""
    parser = ArgumentParser("./run_all.sh", description=ABOUT, allow_abbrev=False)
    add, some = parser.add_argument, parser.add_mutually_exclusive_group()
    add("scale", nargs="?", default="laptop", choices=SCALES, help="how many pairs and how large a model (laptop)")
    some.add_argument("--only", default="", help="run only the notebooks with this number or part of a name")
    some.add_argument("--from", dest="start", default="", help="run that notebook and those after it")
    add("--dataset", default="scenes", help="scenes, flickr8k, coco, cc3m, a name on the Hugging Face Hub, or a path")
    add("--captions", default="", help="columns that hold captions, with commas between, if they are not found")
    add("--image", default="", help="column that holds the pictures, if it is not found")
    add(
        "--models", default="", help="notebook 05: one or two models, ARCHITECTURE:FILE_OR_TAG, hf-hub:… or local-dir:…"
    )
    add("--seen", default="", help="notebook 05: what each was trained on: a boolean column, or a file of row numbers")
    add("--seeds", type=at_least_one, default=5, help="how many times everything is trained (5)")
    add("--jobs", type=at_least_one, help="models trained side by side (one per core, or one on an accelerator)")
    add("--precision", choices=("fp32", "bf16"), help="of products (bf16 where the hardware multiplies it)")
    add("--ray", metavar="ADDRESS", default="", help="train on a Ray cluster (auto, local, …); then run the notebooks")
    add("--share", type=share, default="", help="I/N: train the I-th of N shares of the models, and end")
    add("--force", action="store_true", help="train again what is already trained")
    add("--keep-going", action="store_true", help="go on to the next notebook after one that failed")
    add("--publish", action="store_true", help="afterwards copy the results to figures/, the reference")
    add("--list", action="store_true", help="list the notebooks and what they found; runs nothing")
    add("--lab", nargs="...", metavar="ARGUMENT", help="open JupyterLab at the tour; what follows goes to Jupyter")
    add(
        "--course",
        metavar="DIR",
        help="write a course to DIR: copies for students and instructors, slides, a lesson plan",
    )
    add("--test", action="store_true", help="test the project itself: ruff, mypy, pytest")
    return parser.parse_args(words)


def chosen(options: Namespace) -> list[Path]:
    """Return the notebooks to run, in order. Raise Refused where none fits."""
    every, word = sorted(store.ROOT.glob("notebooks/[0-9]*.ipynb")), options.only or options.start
    number = f"{int(word):02d}_" if word.isdecimal() else ""
    fits = [path for path in every if (path.stem.startswith(number) if number else word in path.stem)]
    if not fits:
        raise Refused(f"no notebook is called {word!r}: {', '.join(path.stem for path in every)}")
    return fits if options.only else every[every.index(fits[0]) :]


def check(options: Namespace, notebooks: Sequence[Path]) -> None:
    """Raise Refused or DataError for what would make the notebooks fail, the cheapest check first."""
    stems = [path.stem for path in notebooks]
    own = any(stem.startswith("05") for stem in stems)
    if (options.models or options.seen) and (not own or options.publish):
        raise Refused("--models and --seen are for notebook 05 (--only 05), and its results are not published.")
    if options.publish and (reason := publish.refusal(options.scale, options.seeds, findings.commit())):
        raise Refused(reason)
    if options.scale in LARGE and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise Refused(f"{options.scale} would take weeks without a GPU, and torch finds none: use laptop")
    for stem in [stem for stem in stems if stem in CONDITIONS]:
        runs.plan(stem, options.scale, options.dataset, options.captions, options.image)


class Bars:
    """A file that shows the progress bars of a notebook's output on the terminal, and nothing else of it."""

    def write(self, text: str) -> None:
        """Show the last state of a bar: tqdm begins each with a carriage return."""
        if "\r" in text:
            bar = text[text.rindex("\r") + 1 :].rstrip()
            print(f"\r{bar}" if sys.stdout.isatty() else bar, end="" if sys.stdout.isatty() else "\n", flush=True)

    def flush(self) -> None:
        """Do nothing: each bar is shown at once."""


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
        quiet = {"kernel_name": "python3", "progress_bar": False, "stdout_file": Bars()}
        papermill.execute_notebook(str(notebook), str(executed), given, cwd=notebook.parent, **quiet)
        results = findings.results_folder(options.dataset, options.scale) / f"{notebook.stem}.json"
        if not results.is_file() or json.loads(results.read_text(encoding="utf-8"))["run_id"] != run_id:
            lines = ["it ended without its last cell, which writes the results: did the kernel die?"]
    except papermill.PapermillExecutionError as error:
        told = strip_ansi("\n".join(error.traceback)).splitlines()
        lines = [f"cell [{error.exec_count}]: {error.ename}: {error.evalue}", *filter(str.strip, told[-TAIL:])]
    except Exception as error:  # a kernel that died, a full disk: all end this notebook
        lines = [f"{type(error).__name__}: {error!s:.500}", "Fewer models at once need less memory: --jobs 1."]
    seconds = time.monotonic() - began
    duration = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    if lines:
        print(f"[FAIL] {notebook.stem} after {duration}", *lines, f"see {executed}", sep="\n       ", flush=True)
        return False
    html, _ = HTMLExporter(template_name="lab").from_filename(str(executed))
    store.write_bytes(executed.with_suffix(".html"), html.encode())
    print(f"[OK]   {notebook.stem} done in {duration}", flush=True)
    return True


def print_findings(options: Namespace, done: Sequence[Path]) -> None:
    """Print what notebooks found and how that compares with the reference, and write an index of their pages."""
    own = findings.results_folder(options.dataset, options.scale)
    found = [json.loads((own / f"{path.stem}.json").read_text(encoding="utf-8"))["findings"] for path in done]
    rows = pd.DataFrame([row for one in found for row in one], columns=[*findings.Finding.__annotations__])
    table, reference = "", findings.reference_folder(options.dataset, options.scale)
    if len(rows):
        shown = rows[["finding", "verdict", "value", "low", "high", "claim"]].round(3)
        print("\n" + shown.to_string(index=False, na_rep="-"))
        table = shown.to_html(index=False)
    if len(rows) and (reference / "findings.json").is_file() and options.scale != "smoke":
        both = rows.merge(findings.read_reference(reference), on="finding", suffixes=("", "_there"))
        differ = both.loc[both["verdict"] != both["verdict_there"], "finding"]
        print(
            f"{len(both) - len(differ)} of {len(both)} verdicts as in the reference; others: {', '.join(differ) or '-'}"
        )
    folder = store.root() / "executed" / own.name
    links = "".join(f'<li><a href="{path.name}">{path.stem}</a></li>' for path in sorted(folder.glob("*.html")))
    page = f"<!doctype html><meta charset=utf-8><title>{own.name}</title><h1>{own.name}</h1><ul>{links}</ul>{table}"
    store.write_bytes(store.root() / f"{own.name}.html", page.replace('href="', f'href="executed/{own.name}/').encode())
    print(f"Figures and tables: {own}\nNotebooks: {(store.root() / f'{own.name}.html').as_uri()}", flush=True)


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
        order = {"notebooks": stems, "seeds": options.seeds, "where": where, "force": options.force}
        order |= {"share": options.share, "ray": options.ray}
        status = subprocess.run([sys.executable, "-P", "-m", "lib.companion.cluster", json.dumps(order)]).returncode
        if options.share or status:
            return status
    elif options.force:
        runs.forget(runs.wanted(stems, options.seeds, *where))
        store.remove("embedding")
    executed = store.root() / "executed" / f"{findings.slug(options.dataset)}-{options.scale}"
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
            print(
                f"Published in {publish.publish(options.dataset, options.scale, stems, executed)} and figures/README.md"
            )
    return int(done != notebooks)


def main(words: list[str]) -> int:
    """Do what run_all.sh was asked, and return its exit status."""
    options = parse(words)
    if Path(options.dataset).expanduser().exists() and options.dataset not in ("scenes", *PRESETS):
        options.dataset = str(Path(options.dataset).expanduser().resolve())  # notebooks run in another folder
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a kernel `python3` in the user's home may be another Python
    os.environ |= {f"CLIPMEM_{n.upper()}": str(v) for n in ("jobs", "precision") if (v := getattr(options, n))}
    if not sys.stdout.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # seconds; in a log, progress is a line per half minute
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)  # end as Ctrl-C does
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
    except (Refused, ValueError) as error:  # DataError is one
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
