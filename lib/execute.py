"""Run one notebook with papermill, and decide whether it is done.

papermill writes `completed` on the cells of a killed kernel, and `SystemExit(0)` in a cell counts as success for it. So
a notebook counts as done only when papermill raised nothing, every code cell ran in order, the results file of this
very run is there, and so is every figure that it names.
"""

import contextlib
import json
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

TAIL = 14  # lines of a traceback or a log that are shown


@dataclass(frozen=True)
class Place:
    """Where the files of a notebook lie. `name` is `<dataset>-<scale>`."""

    project: Path
    runs: Path
    name: str

    def file(self, notebook: Path, ending: str) -> Path:
        """Return what a run leaves of a notebook: .ipynb as executed, .html, .log, .progress.json."""
        return self.runs / "executed" / self.name / (notebook.stem + ending)

    def results(self, notebook: Path) -> Path:
        """Return the file that a notebook writes as its last act: {run_id, notebook, findings, figures}."""
        return self.runs / "results" / self.name / f"{notebook.stem}.json"


def execute(place: Place, notebook: Path, parameters: dict[str, Any], run_id: str) -> list[str]:
    """Run a notebook. Return nothing if it is done, else what happened: a sentence, then the last lines behind it."""
    for ending in (".ipynb", ".html", ".progress.json"):
        place.file(notebook, ending).unlink(missing_ok=True)
    _prepare_kernel(place, notebook, run_id)
    with place.file(notebook, ".log").open("w") as log, _stderr_in(log):
        trouble = _run(place, notebook, parameters, log)
        if not trouble:
            _report(place, notebook)
    return trouble or [f"not done: {text}." for text in shortcomings(place, notebook, run_id)]


def _prepare_kernel(place: Place, notebook: Path, run_id: str) -> None:
    """Set the environment variables that the kernel inherits. ipykernel ends by itself when this process is gone."""
    os.environ["CLIPMEM_RUNS"] = str(place.runs)
    os.environ["CLIPMEM_RUN_ID"] = run_id
    os.environ["CLIPMEM_PROGRESS"] = str(place.file(notebook, ".progress.json"))
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a kernel `python3` in the user's home may be another Python
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a warning at each start otherwise


@contextlib.contextmanager
def _stderr_in(log: TextIO) -> Iterator[None]:
    """Send standard error to the log, also what the kernel writes before it can report it, or while it crashes."""
    terminal = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _run(place: Place, notebook: Path, parameters: dict[str, Any], log: TextIO) -> list[str]:
    """Run the notebook with papermill, all that it prints in the log; return why it failed, or nothing."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from nbconvert.filters import strip_ansi

    source, target = str(notebook), str(place.file(notebook, ".ipynb"))
    options = {"kernel_name": "python3", "progress_bar": False, "stdout_file": log, "stderr_file": log}
    try:
        papermill.execute_notebook(source, target, parameters, cwd=str(notebook.parent), **options)
    except papermill.PapermillExecutionError as error:
        lines = strip_ansi("\n".join(error.traceback)).splitlines()
        print(*lines, sep="\n", file=log)
        sentence = " ".join(f"cell [{error.exec_count}]: {error.ename}: {error.evalue}".split())
        return [_plainly(sentence), *[line for line in lines if line.strip()][-TAIL:]]
    except DeadKernelError:
        return ["the kernel died: killed, or out of memory.", *Path(log.name).read_text().splitlines()[-TAIL:]]
    except Exception as error:  # a full disk, a kernel that does not start: all end this notebook
        traceback.print_exc()
        return [_plainly(f"{type(error).__name__}: {error}")]
    return []


def _plainly(error: str) -> str:
    if "No space left on device" in error:
        return f"the disk is full. Free some space and continue; what is trained stays. ({error})"
    return error


def _report(place: Place, notebook: Path) -> None:
    """Write the executed notebook as HTML, its images inside. A failure is logged: the notebook is done without."""
    import nbformat
    from nbconvert import HTMLExporter

    try:
        executed = nbformat.read(place.file(notebook, ".ipynb"), as_version=4)
        for cell in executed.cells:  # nbconvert embeds only what lies below its path
            if cell.cell_type == "markdown":
                cell.source = cell.source.replace("](../", "](")
        resources = {"metadata": {"path": str(place.project), "name": notebook.stem}}
        text, _ = HTMLExporter(embed_images=True).from_notebook_node(executed, resources=resources)
        place.file(notebook, ".html").write_text(text)
    except Exception:
        traceback.print_exc()


def shortcomings(place: Place, notebook: Path, run_id: str) -> list[str]:
    """Return why a notebook that raised nothing is not done after all; empty if it is."""
    cells = json.loads(place.file(notebook, ".ipynb").read_text())["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
    if counts != list(range(1, len(counts) + 1)):
        last = max(count or 0 for count in counts)
        return [f"it stopped at cell [{last}] of {len(counts)} without an error: exit() in a cell? a lost kernel?"]
    path = place.results(notebook)
    if not path.is_file():
        return [f"it did not write its results file {path}"]
    results = json.loads(path.read_text())
    if results["run_id"] != run_id:
        return [f"the results file {path} is from an earlier run"]
    missing = [name for name in results["figures"] if not (place.project / name).is_file()]
    return [f"the figure {name} is declared, and not there" for name in missing]
