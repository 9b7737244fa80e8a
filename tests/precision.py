"""Whether the precision of training changes what is found: a run in fp32 beside the reference, claim by claim.

./run_all.sh laptop --precision fp32
python tests/precision.py [FILE]        FILE: keep the table there, as CSV
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from lib import findings


def beside_reference(own: Path, reference: Path) -> pd.DataFrame:
    """Return the claims of own results (a folder of `runs/results`) and of a reference, one row per claim."""
    results = [findings.read_results(path) for path in sorted(own.glob("0*_*.json")) if path.stem in NOTEBOOKS]
    precisions = {result["about"]["precision"] for result in results if result["about"].get("precision")}
    ours, theirs = pd.concat([r["findings"] for r in results]), findings.read_reference(reference)
    both = ours.merge(theirs, on=["finding", "claim"], suffixes=(f" in {'/'.join(precisions)}", " in the reference"))
    return both[
        ["finding", "claim", *[name for name in both if name.startswith(("value ", "low ", "high ", "verdict "))]]
    ]


NOTEBOOKS = {path.stem for path in (findings.ROOT / "notebooks").glob("*.ipynb")}

if __name__ == "__main__":
    folders = findings.results_folder("scenes", "laptop"), findings.reference_folder("scenes", "laptop")
    table = beside_reference(*folders)
    print(table.to_string(index=False))
    for file in sys.argv[1:]:
        table.to_csv(file, index=False, float_format="%.4g")
