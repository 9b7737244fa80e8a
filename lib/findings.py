"""The verdicts of the notebooks: recorded, read back, and shown as README's table.

python -m lib.findings            print the table of the committed findings
python -m lib.findings --write    put it into README.md, between its two markers
python -m lib.findings --check    exit 1 when README.md does not hold it
"""

import argparse
import json
import math
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
from filelock import FileLock

from lib import paper
from lib.recipes import slug
from lib.sources import PRESETS
from lib.stats import VERDICTS, Estimate, verdict
from lib.store import PROJECT as ROOT
from lib.store import write_bytes

BEGIN, END = "<!-- findings:begin -->", "<!-- findings:end -->"


@dataclass(frozen=True)
class Finding:
    """One claim and what came of it. `finding`: the paper's finding and a letter for the claim, such as "2a"."""

    finding: str
    claim: str
    verdict: str
    statistic: str
    value: float | None
    low: float | None
    high: float | None
    seeds: int
    dataset: str
    scale: str
    notebook: str
    run_keys: tuple[str, ...]
    commit: str


FIELDS = [f.name for f in fields(Finding)]


class FindingsError(ValueError):
    """A finding, a findings.json or README.md is not what it must be; the message names the file and the entry."""


def decide(
    finding: str,
    claim: str,
    statistic: str,
    estimate: Estimate,
    about: Mapping,
    threshold: float = 0.0,
    side: str = "above",
) -> Finding:
    """The Finding for "`statistic` lies above (or below) `threshold`", decided by `stats.verdict`.

    `about`: the provenance of the notebook's figures (`figures.provenance`)."""
    outcome = verdict(estimate, threshold, side)
    value, low, high = (_number(v) for v in (estimate.value, estimate.low, estimate.high))
    where = (slug(about["dataset"]), about["scale"], about["notebook"], tuple(about["run_keys"]), about["commit"])
    return Finding(finding, claim, outcome, statistic, value, low, high, int(estimate.seeds), *where)


def _number(value: float | None) -> float | None:
    """Six significant digits, enough to read and to compare; None, in JSON null, for what is not finite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _fault(entry: object) -> str:
    """What is wrong with one entry of a findings.json, in words; "" when nothing is."""
    if not isinstance(entry, dict) or set(entry) != set(FIELDS):
        odd = sorted(set(FIELDS) ^ set(entry)) if isinstance(entry, dict) else [type(entry).__name__]
        return f"expected an object with exactly the fields {', '.join(FIELDS)}; missing or unknown: {', '.join(odd)}"
    for name in ("finding", "claim", "statistic", "dataset", "scale", "notebook", "commit"):
        if not isinstance(entry[name], str) or not entry[name]:
            return f"{name} is {entry[name]!r}; expected a text that is not empty"
    if entry["verdict"] not in VERDICTS:
        return f"verdict is {entry['verdict']!r}; expected one of {', '.join(VERDICTS)}"
    if type(entry["seeds"]) is not int or entry["seeds"] < 1:
        return f"seeds is {entry['seeds']!r}; expected a whole number from 1"
    if not isinstance(entry["run_keys"], list | tuple) or not all(isinstance(k, str) for k in entry["run_keys"]):
        return "run_keys is not a list of texts"
    numbers = [entry[name] for name in ("low", "value", "high")]
    if not all(v is None or type(v) in (int, float) for v in numbers):
        return f"low, value, high are {numbers}; expected numbers or null"
    known = [v for v in numbers if v is not None]
    return "" if known == sorted(known) else f"low, value, high are {numbers}; expected them in rising order"


def _load(path: Path) -> list[dict]:
    def refuse(constant: str):
        raise ValueError(f"it holds {constant}, which is not JSON: write null")

    try:
        entries = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:
        raise FindingsError(f"{path}: cannot be read as JSON ({error}); run its notebook again") from error
    if not isinstance(entries, list):
        raise FindingsError(f"{path}: expected a list of findings, found {type(entries).__name__}")
    for number, entry in enumerate(entries, start=1):
        if fault := _fault(entry):
            raise FindingsError(f"{path}, entry {number}: {fault}; run its notebook again")
    return entries


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def folder(dataset: str, scale: str, root: Path = ROOT) -> Path:
    """Where the reference figures and findings of a data set at a scale lie: figures/<slug>-<scale>."""
    return root / "figures" / f"{slug(dataset)}-{scale}"


def record(
    notebook: str, findings: Sequence[Finding], figures: Sequence[str], dataset: str, scale: str, root: Path = ROOT
) -> Path:
    """A notebook's last act: write its findings beside its figures, and the results file of this very run.

    In figures/<slug>-<scale>/findings.json this notebook's entries are replaced and all others kept. The results file,
    written last, is runs/results/<slug>-<scale>/<notebook>.json (runs: env CLIPMEM_RUNS) and carries env
    CLIPMEM_RUN_ID. Returns its path. FindingsError: a malformed finding, or a figure that was declared but not saved.
    """
    entries = [asdict(finding) for finding in findings]
    expected = (notebook, slug(dataset), scale)
    for number, entry in enumerate(entries, start=1):
        fault = _fault(entry)
        if not fault and (found := (entry["notebook"], entry["dataset"], entry["scale"])) != expected:
            fault = f"it belongs to {found}; expected {expected}"
        if fault:
            raise FindingsError(f"{notebook}, finding {number}: {fault}")
    for figure in figures:
        if not (root / figure).is_file():
            raise FindingsError(f"{notebook}: the figure {figure} was declared but not saved; call figures.save first")
    path = folder(dataset, scale, root) / "findings.json"
    results = Path(os.environ.get("CLIPMEM_RUNS") or root / "runs") / "results" / path.parent.name
    results.mkdir(parents=True, exist_ok=True)
    with FileLock(results / ".findings.lock", timeout=60):
        others = [e for e in (_load(path) if path.exists() else []) if e["notebook"] != notebook]
        write_bytes(path, _json(sorted(others + entries, key=lambda e: (e["notebook"], e["finding"], e["claim"]))))
    run_id = os.environ.get("CLIPMEM_RUN_ID") or uuid.uuid4().hex
    done = {"run_id": run_id, "notebook": notebook, "findings": entries, "figures": list(figures)}
    write_bytes(results / f"{notebook}.json", _json(done))
    return results / f"{notebook}.json"


def of(folder: Path) -> pd.DataFrame:
    """The findings of one folder, one row each, with Finding's fields."""
    return pd.DataFrame(_load(folder / "findings.json"), columns=FIELDS)


def read(root: Path = ROOT) -> pd.DataFrame:
    """All committed findings (figures/*/findings.json, smoke left out), one row each, with Finding's fields."""
    paths = [p for p in sorted((root / "figures").glob("*/findings.json")) if not p.parent.name.endswith("-smoke")]
    rows = pd.concat([pd.DataFrame(columns=FIELDS), *(of(path.parent) for path in paths)], ignore_index=True)
    return rows.sort_values(["finding", "claim", "dataset", "scale"], ignore_index=True)


def _command(row: pd.Series) -> str:
    name = row["dataset"] if row["dataset"] in PRESETS else f"{row['dataset']}.parquet"
    data = "" if row["dataset"] == "scenes" else f" --dataset {name}"
    return f"`./run_all.sh {row['scale']} --only {row['notebook'][:2]}{data}`"


def table(findings: pd.DataFrame) -> str:
    """Markdown: finding, claim, what the paper reports, ours with its interval, seeds, data, verdict, command."""
    if findings.empty:
        return "No findings are recorded yet."
    head = ["", "claim", "paper", "ours [95 % interval]", "seeds", "data", "verdict", "command"]
    lines = [head, ["---"] * len(head)]
    for _, row in findings.iterrows():
        value, low, high = ("—" if pd.isna(row[n]) else f"{row[n]:.3f}" for n in ("value", "low", "high"))
        ours = f"{row['statistic']}: {value} [{low}, {high}]"
        data = f"{row['dataset']}, {row['scale']}"
        reported = paper.REPORTS.get(row["finding"], "—")
        lines.append(
            [row["finding"], row["claim"], reported, ours, row["seeds"], data, f"**{row['verdict']}**", _command(row)]
        )
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def render(readme: str, findings: pd.DataFrame) -> str:
    """README's text with the table put between its two markers; FindingsError when it has not exactly these two."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise FindingsError(f"README.md must hold the line {BEGIN} once and below it the line {END} once")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    return f"{before}{BEGIN}\n{table(findings)}\n{END}{after}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command line above; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.findings", description="README's table of findings")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="put the table into README.md")
    mode.add_argument("--check", action="store_true", help="exit 1 when the table in README.md is stale")
    chosen = parser.parse_args(arguments)
    readme = root / "README.md"
    try:
        findings = read(root)
        if not (chosen.write or chosen.check):
            print(table(findings))
            return 0
        old = readme.read_text(encoding="utf-8") if readme.exists() else ""
        new = render(old, findings)
    except FindingsError as error:
        print(error, file=sys.stderr)
        return 1
    if chosen.write:
        write_bytes(readme, new.encode())
    elif new != old:
        print("README.md: its findings table is stale; run: python -m lib.findings --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
