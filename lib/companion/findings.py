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
from scipy.stats import false_discovery_control

from lib import store
from lib.stats import LEVEL, Estimate, verdict

NOT_JUDGED = "not judged"  # the verdict on everything at scale smoke
NUMBERS = ("value", "low", "high", "p", "smallest_detectable")
OF_OUR_CLAIMS = {"reproduced": "supported", "contradicted": "not supported"}  # a claim that no paper makes
HELD = {"reproduced": 1, "supported": 1, "contradicted": -1, "not supported": -1, "negligible": 0}  # what is decided
ADJUSTED = "inconclusive (adjusted)"  # the verdict on what is decided by itself, and not among all claims


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def claims() -> dict[str, dict[str, Any]]:
    """Return claims.json: id of each claim -> claim, statistic, test, side ("above" or "below" 0, "within" the margin),
    paper (what it says); some: margin, `ours` (though the paper speaks of it), prediction, power, withdrawn (why)."""
    return read_json(Path(__file__).with_name("claims.json"))


def of_paper(claim_id: str) -> bool:
    """Return whether a claim is one that the paper, or its authors' later work, makes."""
    return bool(claims()[claim_id]["paper"]) and not claims()[claim_id].get("ours")


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
    outcome, reason, p = verdict(estimate, claim["side"], claim.get("margin", 0.0))
    outcome, reason = ("not testable", gate) if gate else (outcome, reason)
    outcome = outcome if of_paper(claim_id) else OF_OUR_CLAIMS.get(outcome, outcome)
    outcome, reason = (NOT_JUDGED, "") if about["scale"] == "smoke" else (outcome, reason)
    statistic = claim["statistic"] + f" ({detail})" * bool(detail)
    found: dict[str, Any] = {"finding": claim_id, "claim": claim["claim"], "statistic": statistic}
    found |= {"verdict": outcome, "reason": reason, "seeds": int(estimate.seeds), "dataset": about["name"]}
    small = math.nan if claim["side"] == "within" else estimate.smallest_detectable  # that of a test against 0
    numbers = {name: getattr(estimate, name) for name in NUMBERS} | {"p": p, "smallest_detectable": small}
    found |= {name: float(f"{x:.6g}") if math.isfinite(x) else None for name, x in numbers.items()}  # enough digits
    return found | {"over": estimate.over} | {name: about[name] for name in ("scale", "notebook", "commit", "runs")}


def short_name(dataset: str) -> str:
    """Return the short name of a data set: of a path its stem, of a name on the Hub its last part."""
    name = dataset.rstrip("/").split("/")[-1].removesuffix(".parquet")
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "data"


def slug(dataset: str) -> str:
    """Return a name for folders that no other data set has: for a path or a name on the Hub with six hex digits."""
    name = short_name(dataset)
    whole = str(Path(dataset).resolve()) if Path(dataset).exists() else dataset
    return name if name == dataset else f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def results_folder(dataset: str, scale: str, results: str = "results", **_: Any) -> Path:
    """Return where the results of a run are: figures, their tables, and `<notebook>.json` of each notebook."""
    return store.root() / results / f"{slug(dataset)}-{scale}"


def reference_folder(dataset: str, scale: str) -> Path:
    """Return where the reference is. Only `--publish` writes there."""
    return store.ROOT / "figures" / f"{short_name(dataset)}-{scale}"


def record(found: Sequence[dict], figures: Sequence[str], about: Mapping, models: Sequence[dict] = ()) -> None:
    """Write the results file of a notebook, its last act, by which run_all.sh knows that it is done. `models`: of those
    that it read condition, seed, role ("f" or "g") and the key of the run."""
    path, result = results_folder(**about), {"about": dict(about), "figures": list(figures)}
    store.write_json(path / f"{about['notebook']}.json", result | {"findings": list(found), "models": list(models)})


def adjust(rows: Sequence[dict]) -> list[dict]:
    """Return findings of one data set and scale with `p_adjusted`, by Benjamini and Hochberg over all testable ones."""
    tested = [row for row in rows if row["verdict"] != "not testable"]
    adjusted = false_discovery_control([row["p"] for row in tested])
    found = {row["finding"]: float(f"{p:.6g}") for row, p in zip(tested, adjusted, strict=True)}
    return [{**row, "p_adjusted": found.get(row["finding"])} for row in rows]


def read_reference(folder: Path) -> pd.DataFrame:
    """Return the published findings of a folder of figures/, as rows of `decide`, with the name of their `set`, and
    `published`: the verdict that counts, ADJUSTED where the adjusted p value is above 5 %."""
    rows = pd.DataFrame(read_json(folder / "findings.json"))
    rows = rows.astype(dict.fromkeys((*NUMBERS, "p_adjusted"), float)).assign(set=folder.name)
    lost = rows["verdict"].isin(HELD) & (rows["p_adjusted"] > 1 - LEVEL)
    return rows.assign(published=rows["verdict"].mask(lost, ADJUSTED))


def all_references() -> pd.DataFrame:
    """Return all published findings, one row each."""
    tables = map(read_reference, sorted(path.parent for path in store.ROOT.glob("figures/*/findings.json")))
    return pd.concat(tables, ignore_index=True).sort_values(["finding", "set"], ignore_index=True)


def agreement(first: str, second: str) -> list[int]:
    """Return how many claims two folders of figures/ could both test, and on how many of these their published verdicts
    are equal (inconclusive, whatever made it so), their values have one sign, and their verdicts are opposite."""
    rows = all_references().query("verdict != 'not testable'")
    rows["side"] = rows["published"].map(HELD).fillna(9)  # 9: undecided
    one, other = (rows.loc[rows["set"] == name, ["finding", "side", "value"]] for name in (first, second))
    both = one.merge(other, on="finding", suffixes=("", "_2"))
    same, sides, signs = both["side"] == both["side_2"], *(both[x] * both[f"{x}_2"] for x in ("side", "value"))
    return [len(both), *map(int, (same.sum(), (signs > 0).sum(), (sides == -1).sum()))]


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Return the published table behind a figure, such as "02_wrong_captions"."""
    return pd.read_csv(folder / f"{name}.csv")


def paper(name: str) -> pd.DataFrame:
    """Return a table of the paper's own numbers, figures/paper.json: unitmem or noise."""
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
