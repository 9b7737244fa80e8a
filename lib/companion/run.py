"""Run the notebooks in order with papermill, and say at the end what was found: `./run_all.sh --help`."""

import logging
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import papermill
from filelock import FileLock, Timeout
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from tqdm import tqdm

from lib import runs, store
from lib.companion import course, entries, findings, parse, path_in, publish
from lib.data import prepare
from lib.model import device, precision
from lib.photos import PRESETS
from lib.recipes import Recipe, depends_on


def chosen(options: Namespace) -> list[Path]:
    """Return the notebooks to run, in order. Raise ValueError where none fits."""
    every, word = sorted(store.ROOT.glob("notebooks/[0-9]*.ipynb")), options.only or options.start
    part = f"{int(word):02d}_" if word.isdecimal() else word
    fits = [path for path in every if part in path.stem]
    if not fits:
        raise ValueError(f"no notebook is called {word!r}: {', '.join(path.stem for path in every)}")
    return fits if options.only else every[every.index(fits[0]) :]


def absolute(text: str) -> str:
    """Return a path, or ARCHITECTURE:PATH, with an absolute path, and all else as it is: notebooks run elsewhere."""
    path = path_in(text)
    return text.removesuffix(path) + os.path.abspath(os.path.expanduser(path)) if path else text


def check(options: Namespace, stems: Sequence[str]) -> list[Recipe]:
    """Return the models that some notebooks need. Raise ValueError for what would fail, the cheapest check first."""
    if (options.models or options.seen) and (options.publish or stems != ["05_your_own_models"]):
        raise ValueError("--models and --seen are for notebook 05: add --only 05. Its results are not published.")
    if options.publish and (reason := publish.refusal(options.scale, options.seeds, findings.commit())):
        raise ValueError(reason)
    large = options.scale in ("gpu", "paper", "paper16")
    if large and device().type == "cpu" and not options.device:
        raise ValueError(f"{options.scale} takes weeks without a GPU, and torch finds none: use laptop or --device cpu")
    wanted = runs.wanted(stems, options.seeds, options.scale, options.dataset, options.captions, options.image)
    print(*{f"{options.dataset}: {prepare(one.data).said}" for one in wanted[:1]}, sep="\n", flush=True)
    return wanted


def train(options: Namespace, wanted: Sequence[Recipe]) -> None:
    """Train models, or a share of them, before the notebooks run; workers on many machines meet only in the store."""
    index, count = map(int, (options.share or "1/1").split("/"))
    own = wanted[index - 1 :: count]
    if options.force:
        runs.forget(own)
        store.remove("embedding")
    print(f"share {index}/{count}: {len(own)} models, {len(runs.missing(own))} to train", flush=True)
    if options.ray:
        on_ray(runs.missing(own), options.ray)
    else:
        runs.train_all(own)


def on_ray(recipes: Sequence[Recipe], address: str) -> None:
    """Train models in tasks of a Ray cluster: `address` as for ray.init, "local" for this machine. A task takes one
    core and, on an accelerator, one of `--jobs` parts of it. If its node dies, it starts again elsewhere. Code and
    store are at the same place on all nodes."""
    import ray  # not among the packages that every reader installs

    same = {"PYTHONPATH": str(store.ROOT), "CLIPMEM_RUNS": str(store.root()), "CLIPMEM_PRECISION": precision()}
    same |= {"CLIPMEM_DEVICE": os.environ.get("CLIPMEM_DEVICE", "")}
    ray.init(address, runtime_env={"env_vars": same}, log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ray.init sets another handler
    part = 1 / int(os.environ.get("CLIPMEM_JOBS") or 1) if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=part, max_retries=-1)(runs.run)
    pending = [task.remote(one) for one in sorted(recipes, key=lambda one: len(depends_on(one)))]  # donors first
    with tqdm(desc=f"training {len(pending)} models on Ray", total=len(pending), file=sys.stdout) as bar:
        while pending:
            done, pending = ray.wait(pending)
            bar.update(len(ray.get(done)))
    ray.shutdown()


def show_bar(text: str) -> None:
    """Show only the progress bars of what a notebook prints: tqdm begins each state with \\r, and the last is empty."""
    bar = text.rpartition("\r")[2].rstrip()
    if "\r" in text and sys.stdout.isatty():
        print(f"\r{bar}\x1b[K", end="", flush=True)
    elif "\r" in text and bar:
        print(bar, flush=True)


def run_one(notebook: Path, executed: Path, options: Namespace) -> bool:
    """Execute a notebook with the options that it declares as parameters, write it as HTML, and return whether it is
    done: papermill marks the cells of a killed kernel as completed, so its last cell must have written the results."""
    began, wrong = time.monotonic(), list[str]()
    results = findings.results_folder(options.dataset, options.scale) / f"{notebook.stem}.json"
    results.unlink(missing_ok=True)
    print(f"[....] {notebook.stem}", flush=True)
    try:
        # Papermill fills in parameters between braces, in paths as well
        source, target = (str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, executed))
        declared = papermill.inspect_notebook(source)
        given = {name: value for name, value in vars(options).items() if name in declared}
        bars = SimpleNamespace(write=show_bar, flush=lambda: None)
        quiet = {"progress_bar": False, "stdout_file": bars, "extra_arguments": ["--log-level=ERROR"]}  # of the kernel
        papermill.execute_notebook(source, target, given, kernel_name="python3", cwd=notebook.parent, **quiet)
        if not results.is_file():
            wrong = ["it ended before its last cell, which writes the results: did the kernel die?"]
    except papermill.PapermillExecutionError as error:
        told = strip_ansi("\n".join(error.traceback)).splitlines()[-14:]  # enough to show the failing line
        wrong = [f"cell [{error.exec_count}]: {error.ename}: {error.evalue}", *filter(str.strip, told)]
    except Exception as error:  # a kernel that died, a full disk: all end this notebook
        wrong = [f"{type(error).__name__}: {error!s:.500}", "If memory ran out: --jobs 1 needs least."]
    duration = f"{(time.monotonic() - began) / 60:.1f} minutes"
    if wrong:
        print(f"[FAIL] {notebook.stem} after {duration}", *wrong, f"see {executed}", sep="\n       ", flush=True)
    else:
        html, _ = HTMLExporter().from_filename(str(executed))  # as JupyterLab shows it
        store.write_bytes(executed.with_suffix(".html"), html.replace('="../', f'="{store.ROOT.as_uri()}/').encode())
        print(f"[OK]   {notebook.stem} done in {duration}", flush=True)
    return not wrong


def print_findings(options: Namespace, done: Sequence[Path]) -> None:
    """Print what notebooks found and how that compares with the reference."""
    own = findings.results_folder(options.dataset, options.scale)
    rows = pd.DataFrame([row for path in done for row in findings.read_json(own / f"{path.stem}.json")["findings"]])
    reference = findings.reference_folder(options.dataset, options.scale)
    if len(rows):
        shown = rows[["finding", "verdict", "value", "low", "high", "claim"]].round(3)
        print("\n" + shown.to_string(index=False, na_rep="-"))
    if len(rows) and (reference / "findings.json").is_file():
        both = rows.merge(findings.read_reference(reference), on="finding", suffixes=("", "_there"))
        differ = both.loc[both["verdict"] != both["verdict_there"], "finding"]
        print(f"Verdicts that differ from the reference: {', '.join(differ) or 'none'} (of {len(both)})")
    print(f"Figures and tables: {own}\nNotebooks: {store.root() / 'executed' / own.name}", flush=True)


def run_all(options: Namespace, notebooks: Sequence[Path]) -> int:
    """Check, train first where that was asked, run the notebooks, say what they found, publish."""
    stems = [path.stem for path in notebooks]
    wanted = check(options, stems)
    if options.share or options.ray or options.force:
        train(options, wanted)
    if options.share:
        return 0
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
            print("Published in", publish.publish(options.dataset, options.scale, stems, executed))
    return int(done != notebooks)


def set_up(options: Namespace) -> None:
    """Set what the notebooks are to find: absolute paths, environment variables; let every signal end it as Ctrl-C."""
    if options.dataset not in ("scenes", *PRESETS):
        options.dataset = absolute(options.dataset)
    options.models = ",".join(map(absolute, entries(options.models)))
    options.seen = ",".join(absolute(one) if os.path.isfile(one) else one for one in entries(options.seen))
    os.environ |= {"CLIPMEM_RUNS": str(store.root()), "JUPYTER_PREFER_ENV_PATH": "1"}  # no kernel of the user's home
    own = {f"CLIPMEM_{name.upper()}": getattr(options, name) for name in ("jobs", "precision", "device")}
    os.environ |= {name: str(one) for name, one in own.items() if one}
    if not sys.stdout.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # seconds; in a log, progress is a line per half minute
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)


def main(words: list[str]) -> int:
    """Do what run_all.sh was asked, and return its exit status."""
    options = parse(words)
    set_up(options)
    try:
        if options.lab is not None:
            own = [f"--ServerApp.root_dir={store.ROOT}", "--LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb"]
            root = ["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
            os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *own, *root, *options.lab])
        elif options.audit is not None:
            os.execv(sys.executable, [sys.executable, "-P", "-m", "lib.companion.audit", *words])
        elif options.course is not None:
            course.build(Path(options.course).expanduser())
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
