"""What run_all.sh prints: preflight lines, the line of a running notebook, the findings, the list of notebooks."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lib import progress
from lib.execute import Job, read_results
from lib.options import Options, Place
from lib.preflight import Check
from lib.recipes import slug

SECONDS_BETWEEN_LINES = 30  # where the output is a file or a pipe


def show(check: Check) -> bool:
    """Print a preflight line and return whether it is fine."""
    print(f"{'[OK]  ' if check.ok else '[FAIL]'} {check.name:<12} {check.text}", flush=True)
    return check.ok


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


def watch(process: subprocess.Popen, job: Job) -> float:
    """Show a running notebook's phase, percent, elapsed and remaining time until it ends; return the seconds it took.

    One line that is rewritten on a terminal; elsewhere a line now and then.
    """
    began = printed = time.monotonic()
    phase, first = "starting", (began, 0.0)
    terminal = sys.stdout.isatty()
    while process.poll() is None:
        now = time.monotonic()
        report = progress.read(job.file(".progress.json")) or {"phase": "starting", "done": 0, "total": 0}
        if report["phase"] != phase:
            phase, first = report["phase"], (now, report["done"])
        text = status_line(Path(job.notebook).stem, report, now - began, now - first[0], first[1])
        if terminal:
            print("\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K", end="", flush=True)
        elif now - printed >= SECONDS_BETWEEN_LINES:
            printed = now
            print(text, flush=True)
        time.sleep(0.2)
    if terminal:
        print("\r\x1b[K", end="")
    return time.monotonic() - began


def number(value: object) -> str:
    """Return a finding's number in three digits, or a dash where there is none."""
    return f"{value:.3g}" if isinstance(value, int | float) and value == value else "-"


def findings_table(place: Place, options: Options, notebooks: list[Path]) -> str:
    """Return the findings of these notebooks, one a line: verdict, value [low, high], seeds, notebook, claim."""
    rows = [("verdict", "value [low, high]", "seeds", "finding", "claim")]
    for notebook in notebooks:
        results = read_results(place.results(options, notebook)) or {}
        for row in results.get("findings", []):
            value = f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"
            rows.append((row["verdict"], value, str(row["seeds"]), str(row["finding"]), row["claim"]))
    if len(rows) == 1:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    cells = [[*(row[column].ljust(widths[column]) for column in range(4)), row[4]] for row in rows]
    return "\n".join("  ".join(row) for row in cells)


def title(notebook: Path) -> str:
    """Return the first heading of a notebook."""
    cells = json.loads(notebook.read_text())["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "markdown" for line in "".join(cell["source"]).splitlines()]
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "(no title)")


def listing(place: Place, options: Options, notebooks: list[Path]) -> str:
    """Return the notebooks, one a line: name, title, when it was run here, its verdicts here or else as committed."""
    committed_file = place.project / "figures" / f"{slug(options.dataset)}-{options.scale}" / "findings.json"
    committed = json.loads(committed_file.read_text()) if committed_file.is_file() else []
    lines = [f"{options.scale}, {options.dataset}:"]
    for notebook in notebooks:
        path = place.results(options, notebook)
        results = read_results(path)
        rows = results["findings"] if results else [row for row in committed if row["notebook"] == notebook.stem]
        verdicts = [row["verdict"] for row in rows]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        when = time.strftime("run %Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)) if results else "not run here"
        source = "" if results or not rows else " (as committed)"
        lines.append(f"  {notebook.stem}\n      {title(notebook)}\n      {when}; {counts or 'no findings'}{source}")
    return "\n".join(lines)
