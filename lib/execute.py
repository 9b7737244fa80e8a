"""What run_all.sh does with notebooks: check them, execute them with papermill, prove that they are done."""

import json
import logging
import os
import re
import shlex
import time
import traceback
import uuid
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

import papermill
import torch
from nbclient.exceptions import DeadKernelError
from nbconvert.filters import strip_ansi

from lib import data, findings, report, store
from lib.recipes import did_you_mean
from lib.report import PROGRESS

logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what a killed kernel leaves, which we tell ourselves
TAIL = 14  # lines of a traceback or a log that are shown: enough for the failing cell
MEMORY = " Fewer models at once need less memory: --jobs 1."
REQUIRED = ("scale", "dataset")  # parameters that every notebook has
OWN = ("models", "seen")  # parameters that few have
LARGE = ("gpu", "paper", "paper16")  # scales for an accelerator


class NotebookError(Exception):
    """Notebooks cannot be run, or one is not done: a sentence that says why, then the last lines that explain it."""


def _escaped(path: Path) -> str:
    """Return a path as papermill wants it, which fills in parameters where there are braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _absolute(entry: str) -> str:
    """Return an entry of --models or --seen with the path of a file absolute: notebooks run in another folder."""
    kind, colon, rest = entry.strip().rpartition(":")
    path = os.path.expanduser(rest)
    return f"{kind}{colon}{os.path.abspath(path) if rest and kind != 'hf-hub' and os.path.exists(path) else rest}"


def parameters(notebook: Path, options: Namespace) -> dict[str, Any]:
    """Return the options that the notebook declares as parameters.

    Raises:
        NotebookError: one is missing, seems misspelt, or has another type there. papermill would only warn.
    """
    values = {name: getattr(options, name) for name in ("scale", "dataset", "captions", "image", "seeds", "force")}
    values |= {name: ",".join(map(_absolute, getattr(options, name).split(","))) for name in OWN}
    try:
        types = {name: e["inferred_type_name"] for name, e in papermill.inspect_notebook(_escaped(notebook)).items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise NotebookError(f"{notebook} cannot be read as a notebook: {error!s:.200}") from error
    for name, value in values.items():
        hint = did_you_mean(name, [other for other in types if other not in values])
        if name not in types and (hint or name in REQUIRED):
            raise NotebookError(f"{notebook.name} has no parameter {name!r}: {', '.join(types)}.{hint}")
        if types.get(name, "None") not in (type(value).__name__, "None"):  # "None": declared without a type
            raise NotebookError(f"{notebook.name}: {name} is {types[name]} there, and was given {value!r}")
    return {name: value for name, value in values.items() if name in types}


def check(options: Namespace, notebooks: Sequence[Path]) -> None:
    """Refuse, the cheapest check first, what would make the notebooks fail; print what the data set holds.

    Raises:
        NotebookError, DataError: what was asked for cannot be done.
    """
    declared = [parameters(notebook, options) for notebook in notebooks]
    for name in [name for name in OWN if getattr(options, name)]:
        if not any(name in values for values in declared) or options.publish:
            raise NotebookError(f"--{name}: it is for notebook 05 (--only 05), and its results are not published.")
    if options.publish and (reason := findings.unpublishable(options.scale, options.seeds, set())):
        raise NotebookError(reason)
    try:
        store.root().mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=store.root()) as file:
            file.write(bytes(2**20))  # an empty file fits on a full disk
    except OSError as error:
        advice = "Make room, or set CLIPMEM_RUNS to another folder."
        raise NotebookError(f"{store.root()} cannot be written: {error.strerror}. {advice}") from error
    if options.scale in LARGE and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise NotebookError(f"{options.scale} would take weeks without a GPU, and torch finds none: use laptop")
    columns = [name.strip() for name in options.captions.split(",") if name.strip()]
    print(f"[OK]   {data.check(options.dataset, options.image, columns)}", flush=True)


class Teed:
    """A log that repeats progress lines on the terminal."""

    def __init__(self, log: TextIO):
        self.log, self.flush = log, log.flush

    def write(self, text: str) -> None:
        """Write to the log. tqdm begins its lines with a carriage return, and ends none."""
        self.log.write(text.replace("\r", "\n"))
        for line in re.split(r"[\r\n]", text):
            if line.startswith(PROGRESS):
                print(line.rstrip(), flush=True)


@contextmanager
def _stderr_in(log: TextIO) -> Iterator[None]:
    """Send standard error to the log, also what the kernel writes before it can report it, or while it crashes."""
    terminal = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def execute(notebook: Path, target: Path, given: dict[str, Any]) -> None:
    """Run a notebook with parameters; leave it executed at `target`, and its log beside it. Raise NotebookError."""
    target.unlink(missing_ok=True)
    with target.with_suffix(".log").open("w", encoding="utf-8") as log, _stderr_in(log):
        try:
            papermill.execute_notebook(
                _escaped(notebook),
                _escaped(target),
                given,
                kernel_name="python3",
                cwd=notebook.parent,
                progress_bar=False,
                stdout_file=Teed(log),
                stderr_file=log,
            )
        except papermill.PapermillExecutionError as error:
            lines = strip_ansi("\n".join(error.traceback)).splitlines()
            print(*lines, sep="\n", file=log)
            sentence = " ".join(f"cell [{error.exec_count}]: {error.ename}: {error.evalue}".split())
            sentence += MEMORY * ("MemoryError" in sentence or "allocate memory" in sentence)
            raise NotebookError(sentence, *[line for line in lines if line.strip()][-TAIL:]) from error
        except DeadKernelError as error:
            last = Path(log.name).read_text(encoding="utf-8").splitlines()[-TAIL:]
            raise NotebookError(f"the kernel died: it was killed, or out of memory.{MEMORY}", *last) from error
        except Exception as error:  # a full disk, a kernel that does not start: all end this notebook
            traceback.print_exc(file=log)
            raise NotebookError(f"{type(error).__name__}: {error}") from error


def prove(executed: Path, results: Path, run_id: str) -> None:
    """Raise NotebookError where a notebook that ended without an error is not done after all.

    papermill marks the cells of a killed kernel as completed, and SystemExit(0) in a cell counts as success for it.
    """
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    counts = [cell["execution_count"] or 0 for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
    if counts != list(range(1, len(counts) + 1)):
        reason = "without an error: exit() in a cell? a lost kernel?"
        raise NotebookError(f"not done: it stopped at cell [{max(counts)}] of {len(counts)} {reason}")
    try:
        found = findings.read_results(results)
    except findings.FindingsError as error:
        raise NotebookError(f"not done: {error}") from error
    if found["run_id"] != run_id:
        raise NotebookError(f"not done: {results} is from an earlier run. Its last cell has to write the results.")
    for name in found["figures"]:
        if not (results.parent / f"{name}.png").is_file():
            raise NotebookError(f"not done: the figure {name} is declared, and not in {results.parent}")


def run_one(project: Path, options: Namespace, notebook: Path, executed: Path, later: float = 0) -> bool:
    """Run a notebook, print how it ended, and return whether it is done. `later`: seconds of those that follow."""
    began, run_id = time.monotonic(), uuid.uuid4().hex
    own = {"RUNS": str(store.shared()), "RUN_ID": run_id, "LOGGED": "1", "LATER": str(round(later))}
    os.environ |= {f"CLIPMEM_{name}": value for name, value in own.items()}  # which the kernel inherits
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a warning at each start otherwise
    print(f"{PROGRESS} {notebook.stem}", flush=True)
    try:
        execute(notebook, executed, parameters(notebook, options))
        results = findings.results_folder(options.dataset, options.scale) / f"{notebook.stem}.json"
        prove(executed, results, run_id)
        report.write(project, executed, options.dataset, options.scale)
    except NotebookError as error:
        print(f"[FAIL] {notebook.stem}  after {duration(time.monotonic() - began)}")
        sentence, *last = error.args
        end = [f"log: {executed.with_suffix('.log')}", f"continue: {command(options, notebook.stem)}"]
        print(*[f"       {line}" for line in [sentence, *(f"  {line}" for line in last), *end]], sep="\n", flush=True)
        return False
    print(f"[OK]   {notebook.stem}  done in {duration(time.monotonic() - began)}", flush=True)
    return True


def duration(seconds: float) -> str:
    """Return "40 seconds" or "55 minutes"."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def command(options: Namespace, notebook: str) -> str:
    """Return the command line that continues at a notebook, given by its stem."""
    words = [os.environ.get("CLIPMEM_COMMAND", "./run_all.sh"), options.scale]
    words += ["--only", options.only] if options.only else ["--from", notebook.split("_")[0]]
    words += [word for name, value in options.given.items() for word in (f"--{name}", str(value))]
    words += ["--keep-going"] * options.keep_going + ["--publish"] * options.publish
    return shlex.join(words)  # without --force, which would throw away what is trained by now
