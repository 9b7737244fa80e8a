"""Run one notebook in a process of its own, and decide whether it is done.

papermill writes `completed` on the cells of a killed kernel, and `SystemExit(0)` in a cell counts as success for it. So
a notebook counts as done only when papermill raised nothing, every code cell ran in order, the results file of this
very run is there, and so is every figure that it names.

    python -m lib.execute JOB.json      what `start` starts
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TAIL = 14  # lines of a traceback or a log that are shown
KERNEL = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}


@dataclass(frozen=True)
class Job:
    """One notebook to run. `folder` gets the executed notebook, its log, its report and its progress."""

    notebook: str
    folder: str
    results: str
    runs: str
    project: str
    run_id: str
    parameters: dict[str, Any]

    def file(self, ending: str) -> Path:
        """Return the file of this notebook with an ending: .ipynb, .html, .log, .progress.json, .error.json."""
        return Path(self.folder) / (Path(self.notebook).stem + ending)


def kernel_folder(runs: Path) -> str:
    """Write a kernel `python3` that is this very Python and return the folder to put on JUPYTER_PATH.

    A kernel of that name in the user's home may belong to another Python, and would win otherwise.
    """
    folder = runs / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.json").write_text(json.dumps({**KERNEL, "display_name": "Python 3 (ipykernel)"}))
    return str(runs / "jupyter")


def environ(runs: Path) -> dict[str, str]:
    """Return the environment variables in which notebooks find `lib`, the folder of runs and this Python."""
    paths = {"PYTHONPATH": str(ROOT), "JUPYTER_PATH": kernel_folder(runs)}
    joined = {name: os.pathsep.join([path, *filter(None, [os.environ.get(name)])]) for name, path in paths.items()}
    return {**os.environ, **joined, "CLIPMEM_RUNS": str(runs), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def start(job: Job) -> subprocess.Popen:
    """Start a job. It ends by itself when this process does, and takes its kernel with it."""
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    for ending in (".ipynb", ".html", ".progress.json", ".error.json"):
        job.file(ending).unlink(missing_ok=True)
    job.file(".job.json").write_text(json.dumps(asdict(job)))
    own = {"CLIPMEM_RUN_ID": job.run_id, "CLIPMEM_PROGRESS": str(job.file(".progress.json"))}
    with job.file(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "lib.execute", str(job.file(".job.json"))],
            env={**environ(Path(job.runs)), **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches run_all.sh only, which then ends this process
        )


def _end_with(parent: int) -> None:
    """End this process once its parent is gone, even killed; the kernel watches this process in the same way."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def execute(job: Job) -> int:
    """Run the notebook with papermill, here and now; write .error.json and return 1 if it raises, else the report."""
    from papermill import PapermillExecutionError, execute_notebook

    error: dict[str, Any] = {}
    with job.file(".log").open("a") as log:
        try:
            execute_notebook(
                job.notebook,
                str(job.file(".ipynb")),
                parameters=job.parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=log,
                stderr_file=log,
                cwd=str(Path(job.notebook).parent),
            )
        except PapermillExecutionError as failure:
            text = " ".join(f"{failure.ename}: {failure.evalue}".split())
            lines = plain("\n".join(failure.traceback)).splitlines()
            error = {"cell": failure.exec_count, "text": text, "trace": [line for line in lines if line.strip()]}
        except Exception as failure:  # a dead kernel, a full disk, a notebook that is not JSON: all end this notebook
            error = {"text": f"{type(failure).__name__}: {failure}", "trace": []}
    if error:
        print(error["text"], *error["trace"], sep="\n", file=sys.stderr)
        job.file(".error.json").write_text(json.dumps(error))
        return 1
    report(job)
    return 0


def report(job: Job) -> None:
    """Write the executed notebook as HTML, its images inside. A failure is logged: the notebook is done without."""
    from nbconvert import HTMLExporter

    try:
        resources = {"metadata": {"path": str(Path(job.notebook).parent), "name": Path(job.notebook).stem}}
        text, _ = HTMLExporter(embed_images=True).from_filename(str(job.file(".ipynb")), resources=resources)
        job.file(".html").write_text(text)
    except Exception as failure:
        print(f"The HTML report could not be written: {type(failure).__name__}: {failure}", file=sys.stderr)


def plain(text: str) -> str:
    """Return text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def shortcomings(job: Job) -> list[str]:
    """Return why a notebook that raised nothing is not done after all; empty if it is."""
    cells = json.loads(job.file(".ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    counts = [cell["execution_count"] for cell in code]
    found = []
    if counts != list(range(1, len(counts) + 1)):
        last = max((count for count in counts if count), default=0)
        found.append(f"it stopped at cell [{last}] of {len(counts)} without an error: exit() in a cell? a lost kernel?")
    results = read_results(Path(job.results))
    if results is None:
        found.append(f"it did not write its results file {job.results}")
    elif results.get("run_id") != job.run_id:
        found.append(f"the results file {job.results} is from an earlier run")
    else:
        missing = [name for name in results.get("figures", []) if not (Path(job.project) / name).is_file()]
        found += [f"the figure {name} is declared, and not there" for name in missing]
    return found


def read_results(path: Path) -> dict | None:
    """Return a results file ({run_id, notebook, findings, figures}), or None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        results = json.loads(path.read_text())
        return results if isinstance(results, dict) else None
    return None


def failure(job: Job, status: int) -> list[str]:
    """Return nothing if the job is done, else what happened: one sentence, then the last lines that explain it."""
    if status == 0:
        return [f"not done: {text}." for text in shortcomings(job)]
    log = plain(job.file(".log").read_text(errors="replace")).splitlines()
    error = read_results(job.file(".error.json"))
    if error is None:
        return [f"its process ended with status {status} (killed? out of memory?).", *log[-TAIL:]]
    text = error["text"]
    if text.startswith("DeadKernelError"):
        return ["the kernel died: killed, or out of memory.", *log[-TAIL:]]
    if "No space left on device" in text:
        text = f"the disk is full. Free some space and continue; what is trained stays. ({text})"
    return [text, *(error["trace"] or log)[-TAIL:]]


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.exit(execute(Job(**json.loads(Path(sys.argv[1]).read_text()))))
