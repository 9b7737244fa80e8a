"""What the notebooks found: recorded, compared with the reference, published."""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Image, display

from lib import store
from lib.recipes import published_name, slug
from lib.stats import Estimate, verdict
from lib.store import ROOT

NOT_JUDGED = "not judged"  # the verdict on everything at scale smoke
MIN_SEEDS = 3  # the fewest that are published: the paper's own number
ENDINGS = (".png", ".pdf", ".csv", ".json")  # the files of a figure
NUMBERS = ("value", "low", "high", "p", "detectable")


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
    p: float | None
    detectable: float | None
    seeds: int
    dataset: str
    scale: str
    notebook: str
    commit: str
    reason: str  # why the claim is not testable, else ""
    runs: str  # digest of the names of all models behind the notebook
    claims_commit: str  # the one that last changed the claims


class FindingsError(ValueError):
    """Results or a findings.json are not as they must be; the message names the file and says what to do."""


def paper(name: str) -> pd.DataFrame:
    """Return a table of the paper's own numbers, figures/paper.json: unitmem, captions, noise or removed."""
    entry = json.loads((ROOT / "figures" / "paper.json").read_text(encoding="utf-8"))[name]
    return pd.DataFrame(entry["columns"], index=pd.Index(entry["rows"], name=entry["index"]))


def show(folder: Path, name: str) -> None:
    """Show a figure of the reference in a notebook, described by its title."""
    about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    picture = Image(filename=folder / f"{name}.png", width=900)
    display(picture, metadata={"image/png": {"alt": about["title"], "figure": name}})


def results_folder(dataset: str, scale: str) -> Path:
    """Return where own results lie: figures, their tables, and `<notebook>.json` of each notebook."""
    return store.root() / "results" / f"{slug(dataset)}-{scale}"


def reference_folder(dataset: str, scale: str) -> Path:
    """Return where the reference lies. Only `publish` writes there."""
    name = published_name(dataset)
    if slug(name) == name != dataset:  # a file that happens to be called as a built-in data set
        name = slug(dataset)
    return ROOT / "figures" / f"{name}-{scale}"


@cache
def claims() -> dict[str, dict[str, str]]:
    """Return lib/claims.json: id of each claim -> claim, statistic, test, side ("above" or "below" 0) and paper."""
    return json.loads(Path(__file__).with_name("claims.json").read_text(encoding="utf-8"))


def claims_table(notebook_number: str) -> pd.DataFrame:
    """Return the claims of a notebook, such as "02", as a table to show: what is claimed, and when it is reproduced."""
    rows = {name: one for name, one in claims().items() if name.startswith(notebook_number.lstrip("0"))}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["claim", "test", "paper"]).replace("", "—")
    return table.rename(columns={"test": "reproduced when", "paper": "the paper"})


def decide(claim_id: str, estimate: Estimate, about: Mapping[str, Any], gate: str = "", detail: str = "") -> Finding:
    """Return what came of a claim of lib/claims.json, decided by `stats.verdict`; at scale smoke nothing is decided.

    `about`: the provenance that `study.begin` collects. `gate`: why the claim cannot be tested here, "" where it can.
    `detail`: what the notebook chose, such as the best baseline; it stands behind the statistic, in parentheses. Raise
    FindingsError for an unknown claim.
    """
    if claim_id not in claims():
        raise FindingsError(f"claim_id: expected one of {', '.join(claims())} (lib/claims.json), got {claim_id!r}")
    entry = claims()[claim_id]
    outcome, reason = ("not testable", gate) if gate else verdict(estimate, entry["side"])
    outcome, reason = (NOT_JUDGED, "") if about["scale"] == "smoke" else (outcome, reason)
    rest: dict[str, Any] = {name: about[name] for name in ("scale", "notebook", "commit", "runs", "claims_commit")}
    for name in NUMBERS:  # six digits are enough to read and to compare; null for what is not finite
        number = getattr(estimate, name)
        rest[name] = float(f"{number:.6g}") if number is not None and math.isfinite(number) else None
    rest |= {"seeds": int(estimate.seeds), "dataset": about["name"], "claim": entry["claim"]}
    statistic = entry["statistic"] + f" ({detail})" * bool(detail)
    return Finding(finding=claim_id, verdict=outcome, reason=reason, statistic=statistic, **rest)


def record(notebook: str, findings: Sequence[Finding], figures: Sequence[str], about: Mapping[str, Any]) -> Path:
    """Write the results file of this very run, a notebook's last act, and return its path.

    It carries the environment variable CLIPMEM_RUN_ID, by which run_all.sh knows its own run.
    """
    path = store.root() / "results" / f"{about['dataset']}-{about['scale']}" / f"{notebook}.json"
    results = {"run_id": os.environ.get("CLIPMEM_RUN_ID") or uuid.uuid4().hex, "notebook": notebook}
    entries = [asdict(finding) for finding in findings]
    store.write_json(path, {**results, "about": dict(about), "findings": entries, "figures": list(figures)})
    return path


def _table(entries: Any) -> pd.DataFrame:
    found = pd.DataFrame([Finding(**entry) for entry in entries], columns=[field.name for field in fields(Finding)])
    return found.astype(dict.fromkeys(NUMBERS, float) | {"seeds": int})  # refuses what is no number


def _read(path: Path, convert: Callable[[Any], Any], advice: str) -> Any:
    try:
        return convert(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise FindingsError(f"{path} is missing: {advice}.") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FindingsError(f"{path} is damaged: {advice}. ({error!r:.120})") from error


def read_results(path: Path) -> dict[str, Any]:
    """Return what `record` wrote, its findings as a table. Raise FindingsError for a missing or damaged file."""
    names = ("run_id", "notebook", "about", "figures")
    convert = lambda found: {name: found[name] for name in names} | {"findings": _table(found["findings"])}  # noqa: E731
    return _read(path, convert, f"run notebook {path.stem} again")


def read_reference(folder: Path) -> pd.DataFrame:
    """Return the published findings of one folder, with Finding's fields. Raise FindingsError, as `read_results`."""
    return _read(folder / "findings.json", _table, "restore it with git, or publish it with ./run_all.sh --publish")


def all_references() -> pd.DataFrame:
    """Return all published findings, one row each, with Finding's fields and the name of their `set`."""
    tables = [read_reference(path.parent) for path in sorted(ROOT.glob("figures/*/findings.json"))]
    rows = pd.concat(tables, ignore_index=True) if tables else _table([])
    rows = rows.assign(set=rows["dataset"] + "-" + rows["scale"])
    return rows.sort_values(["finding", "claim", "dataset", "scale"], ignore_index=True)


def compare(results: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Return in one sentence how far the claims that are in both agree."""
    both = results.merge(reference, on=["finding", "claim"], suffixes=("", "_there"))
    if both.empty:
        return "The reference has none of these claims."
    differ = both.loc[both["verdict"] != both["verdict_there"], "finding"]
    sentence = f"{len(both)} claims: {len(both) - len(differ)} verdicts as in the reference"
    if len(differ):
        sentence += f", {len(differ)} {'differs' if len(differ) == 1 else 'differ'} ({', '.join(differ)})"
    distance = (both["value"] - both["value_there"]).abs()
    if distance.notna().any():
        sentence += f"; largest difference {distance.max():.2g} ({both.loc[distance.idxmax(), 'finding']})"
    return f"{sentence}."


def unpublishable(scale: str, seeds: int, commits: set[str]) -> str:
    """Return why results may not become the reference, or "" where they may."""
    if scale == "smoke":
        return "smoke decides nothing, so it is not published: use laptop or a larger scale"
    if seeds < MIN_SEEDS:
        return f"{seeds} seeds are too few to publish: use at least {MIN_SEEDS}"
    if len(commits) > 1:
        return f"the results are from different commits ({', '.join(sorted(commits))}): run all these notebooks again"
    if any(commit == "unknown" or commit.endswith("+") for commit in commits):
        return f"the results are from commit {', '.join(commits)}, not from a committed state: commit, then run again"
    return ""


def publish(dataset: str, scale: str, notebooks: Sequence[str]) -> Path:
    """Replace what the reference has of these notebooks; return its folder. Raise FindingsError if `unpublishable`."""
    own, reference = results_folder(dataset, scale), reference_folder(dataset, scale)
    results = [read_results(own / f"{notebook}.json") for notebook in notebooks]
    results = [result for result in results if len(result["findings"])]  # the tour has none
    seeds = min((result["about"]["seeds"] for result in results), default=0)
    if reason := unpublishable(scale, seeds, {result["about"]["commit"] for result in results}):
        raise FindingsError(reason)
    old = read_reference(reference) if (reference / "findings.json").exists() else _table([])
    kept = old[~old["notebook"].isin([result["notebook"] for result in results])]
    rows = pd.concat([kept, *(result["findings"] for result in results)]).sort_values(["notebook", "finding", "claim"])
    names = [name for result in results for name in result["figures"]]
    files = {f"{name}{ending}": (own / f"{name}{ending}").read_bytes() for name in names for ending in ENDINGS}
    for name in names:
        digest = _read(own / f"{name}.json", lambda found: found["csv_sha256"], f"run notebook {name[:2]} again")
        if digest != hashlib.sha256(files[f"{name}.csv"]).hexdigest():
            raise FindingsError(f"{own / name}.csv was changed since it was made: run notebook {name[:2]} again")
    for stale in [path for result in results for path in reference.glob(f"{result['notebook'][:2]}_*")]:
        stale.unlink()
    for name, content in files.items():
        store.write_bytes(reference / name, content)
    store.write_json(reference / "findings.json", rows.astype(object).where(rows.notna(), None).to_dict("records"))
    return reference
