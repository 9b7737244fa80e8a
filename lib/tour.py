"""Notebook 00: the committed tables and verdicts of the other notebooks, read and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from lib import figures, findings
from lib.progress import report


@dataclass(frozen=True)
class Tour:
    """The committed results of one data set and scale, in `folder`."""

    scale: str
    dataset: str
    folder: Path

    def table(self, name: str) -> pd.DataFrame:
        """The table behind a committed figure.

        Raises:
            FileNotFoundError: the notebook that makes it was not run at this scale; the message says how to.
        """
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run ./run_all.sh {self.scale} --only {name[:2]} first")
        return pd.read_csv(path)

    def verdicts(self, number: str) -> pd.DataFrame:
        """The verdicts on one of the paper's four findings, as a table to show."""
        found = findings.of(self.folder)
        chosen = found[found["finding"].str.startswith(number)].set_index("finding")
        return chosen[["claim", "verdict", "statistic", "value", "low", "high"]].round(3)

    def finish(self) -> None:
        """The last act of the notebook: its results file. It has no findings and no figures of its own."""
        findings.record("00_tour", [], [], self.dataset, self.scale)
        report("done", 1, 1)
        plt.close("all")


def begin(scale: str, dataset: str) -> Tour:
    """The results at `scale`, or, where not all notebooks ran there, the committed ones of scenes at `laptop`."""
    figures.theme()
    folder = findings.folder(dataset, scale)
    here = {path.name[:2] for path in folder.glob("*.csv")}
    if not here >= {"01", "02", "03", "04"}:
        folder = findings.folder("scenes", "laptop")
    print(f"results of {folder.name}, from commit {', '.join(sorted(set(findings.of(folder)['commit'])))}")
    return Tour(scale, dataset, folder)
