"""Will my numbers differ? The same experiment run in several ways, compared pair by pair and claim by claim.

    ./run_all.sh laptop --only 02
    CLIPMEM_RUNS=runs/fp32 ./run_all.sh laptop --only 02 --precision fp32
    CLIPMEM_RUNS=runs/alone ./run_all.sh laptop --only 02 --jobs 1
    VIRTUAL_ENV=~/older CLIPMEM_RUNS=runs/older ./run_all.sh laptop --only 02     # an environment with another torch
    python tests/agreement.py FILE runs "fp32 for bf16=runs/fp32" "one model at once=runs/alone" "torch 2.14=runs/older"

The first store is what all others are compared with. FILE: the table, as CSV; every notebook that is in both counts.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from lib import findings

PAIRS = "02_wrong_captions.csv"  # CLIPMem of every pair of every seed


def results(store: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the findings in a store, on scenes at laptop, and CLIPMem of every pair and seed."""
    folder = Path(store) / "results" / "scenes-laptop"
    read = [findings.read_results(path)["findings"] for path in folder.glob("0*_*.json") if path.stem in NOTEBOOKS]
    return pd.concat(read), pd.read_csv(folder / PAIRS).set_index(["seed", "pair_id"])["clipmem"]


def row(changed: str, store: str, first: str) -> dict[str, object]:
    """Return how far what is in one store agrees with what is in the first one."""
    (claims, pairs), (usual, before) = results(store), results(first)
    both = claims.merge(usual, on="finding", suffixes=("", "_before"))
    means = pd.concat([pairs, before], axis=1, keys=["now", "before"]).groupby("pair_id").mean()
    shift = (both["value"] - both["value_before"]).abs() / (both["high_before"] - both["low_before"])
    return {
        "changed": changed,
        "largest change of one score": (pairs - before).abs().max(),
        "largest change of a pair's mean": (means["now"] - means["before"]).abs().max(),
        "rank correlation of pairs": means.corr("spearman").iloc[0, 1],
        "largest change of a finding, as a share of its interval": shift.max(),
        "equal verdicts": f"{(both['verdict'] == both['verdict_before']).sum()} of {len(both)}",
    }


NOTEBOOKS = {path.stem for path in (findings.ROOT / "notebooks").glob("*.ipynb")}

if __name__ == "__main__":
    file, first, *others = sys.argv[1:]
    table = pd.DataFrame([row(*one.split("=", 1), first) for one in others])
    print(table.T.to_string(header=False))
    table.to_csv(file, index=False, float_format="%.3g")
