"""The claims and their tests, what a notebook found, and what is published in figures/."""

import hashlib
import json
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from lib import store
from lib.stats import Estimate, verdict

NOT_JUDGED = "not judged"  # the verdict on everything at scale smoke
NUMBERS = ("value", "low", "high", "p", "smallest_detectable")
OF_OUR_CLAIMS = {"reproduced": "supported", "contradicted": "not supported"}  # a claim that the paper does not make


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def claims() -> dict[str, dict[str, str]]:
    """Return claims.json: id of each claim -> claim, statistic, test, side ("above" or "below" 0), paper ("": our own)
    and, where it is no longer tested, why it was withdrawn."""
    return read_json(Path(__file__).with_name("claims.json"))


def claims_table(notebook_number: str) -> pd.DataFrame:
    """Return the claims of a notebook, such as "02", as a table to show: what is claimed, and when it is reproduced."""
    number = notebook_number.lstrip("0")
    rows = {name: one for name, one in claims().items() if name.startswith(number) and "withdrawn" not in one}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["claim", "test", "paper"]).replace("", "—")
    return table.rename(columns={"test": "holds when", "paper": "the paper"})


def decide(claim_id: str, estimate: Estimate, about: Mapping[str, Any], gate: str = "", detail: str = "") -> dict:
    """Return what came of a claim, such as "2a", decided by `stats.verdict`, as a row of findings.json. `about`: the
    provenance of a notebook; at scale smoke nothing is decided. `gate`: why the claim cannot be tested here, "" where
    it can. `detail`: what the notebook chose, such as the best baseline."""
    claim = claims()[claim_id]
    outcome, reason = ("not testable", gate) if gate else verdict(estimate, claim["side"])
    outcome = outcome if claim["paper"] else OF_OUR_CLAIMS.get(outcome, outcome)
    outcome, reason = (NOT_JUDGED, "") if about["scale"] == "smoke" else (outcome, reason)
    statistic = claim["statistic"] + f" ({detail})" * bool(detail)
    found: dict[str, Any] = {"finding": claim_id, "claim": claim["claim"], "statistic": statistic}
    found |= {"verdict": outcome, "reason": reason, "seeds": int(estimate.seeds), "dataset": about["name"]}
    numbers = {name: float(f"{getattr(estimate, name):.6g}") for name in NUMBERS}  # enough to read and to compare
    found |= {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return found | {name: about[name] for name in ("scale", "notebook", "commit", "runs", "claims_commit")}


def short_name(dataset: str) -> str:
    """Return the short name of a data set: of a path its stem, of a name on the Hub its last part."""
    name = dataset.rstrip("/").split("/")[-1].removesuffix(".parquet")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "data"


def slug(dataset: str) -> str:
    """Return a name for folders that no other data set has: for a path or a name on the Hub with six hex digits."""
    name = short_name(dataset)
    whole = str(Path(dataset).resolve()) if Path(dataset).exists() else dataset
    return name if name == dataset else f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def results_folder(dataset: str, scale: str) -> Path:
    """Return where the results of a run are: figures, their tables, and `<notebook>.json` of each notebook."""
    return store.root() / "results" / f"{slug(dataset)}-{scale}"


def reference_folder(dataset: str, scale: str) -> Path:
    """Return where the reference is. Only `--publish` writes there."""
    return store.ROOT / "figures" / f"{short_name(dataset)}-{scale}"


def record(found: Sequence[dict], figures: Sequence[str], about: Mapping[str, Any]) -> None:
    """Write the results file of a notebook, its last act, by which run_all.sh knows that it is done."""
    path = results_folder(about["dataset"], about["scale"]) / f"{about['notebook']}.json"
    store.write_json(path, {"about": dict(about), "figures": list(figures), "findings": list(found)})


def read_reference(folder: Path) -> pd.DataFrame:
    """Return the published findings of a folder of figures/, as rows of `decide`, and the name of their `set`."""
    rows = pd.DataFrame(read_json(folder / "findings.json"))
    return rows.astype(dict.fromkeys(NUMBERS, float)).assign(set=folder.name)


def all_references() -> pd.DataFrame:
    """Return all published findings, one row each."""
    tables = [read_reference(path.parent) for path in sorted(store.ROOT.glob("figures/*/findings.json"))]
    return pd.concat(tables, ignore_index=True).sort_values(["finding", "set"], ignore_index=True)


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Return the published table behind a figure, such as "02_wrong_captions"."""
    return pd.read_csv(folder / f"{name}.csv")


def paper(name: str) -> pd.DataFrame:
    """Return a table of the paper's own numbers, figures/paper.json: unitmem, captions, noise or removed."""
    entry = read_json(store.ROOT / "figures" / "paper.json")[name]
    return pd.DataFrame(entry["columns"], index=pd.Index(entry["rows"], name=entry["index"]))


def git(*words: str) -> str:
    """Return what git says about the project, "unknown" where it says nothing or is not there."""
    try:
        command = ["git", "-C", str(store.ROOT), *words]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip() or "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def commit() -> str:
    """Return the project's commit, 10 hex digits, with '+' where lib or notebooks differ; 'unknown' without git."""
    changed = git("status", "--porcelain", "--", "lib", "notebooks") != "unknown"
    return git("rev-parse", "--short=10", "HEAD") + "+" * changed
