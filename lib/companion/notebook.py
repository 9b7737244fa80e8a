"""How a notebook begins and ends: data and models at a scale, provenance, figures kept, claims decided."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from lib import model as models
from lib import runs, store
from lib.companion import figures, findings
from lib.data import Dataset, prepare
from lib.recipes import SCALES, VERSION, Recipe, Study, all_models
from lib.stats import Estimate

VERSIONS = ("torch", "open_clip_torch", "numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "seaborn")


@dataclass
class NotebookRun:
    """What a notebook leaves behind, in `runs/results/`: its figures with their tables, and what came of its claims."""

    about: dict[str, Any]  # the provenance of its figures
    figures: list[str] = field(default_factory=list)
    found: dict[str, findings.Finding] = field(default_factory=dict)  # by claim: the last decision counts

    def keep(self, figure: Figure, name: str, table: pd.DataFrame, private: bool = False) -> None:
        """Show a figure here, and save it as `NN_name` with its table. `private`: it shows pictures or captions; those
        of data sets other than scenes may not be published, so it is saved in `runs/private/`."""
        name, own = f"{self.about['notebook'][:2]}_{name}", f"{self.about['dataset']}-{self.about['scale']}"
        private = private and self.about["dataset"] != "scenes"
        folder = store.root() / ("private" if private else "results") / own
        if not private and name not in self.figures:
            self.figures.append(name)
        figures.footer(figure, self.about)
        for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):  # same figure, same bytes
            figure.savefig(buffer := io.BytesIO(), format=kind, dpi=150, metadata=metadata)
            store.write_bytes(folder / f"{name}.{kind}", buffer.getvalue())
        cells = table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
        store.write_bytes(folder / f"{name}.csv", cells)
        title = " ".join(figure.get_suptitle().split())
        about = {"figure": name, "title": title, "footer": figure.get_supxlabel(), "place": len(self.figures)}
        about |= {"rows": len(table), "csv_sha256": hashlib.sha256(cells).hexdigest()}
        store.write_json(folder / f"{name}.json", self.about | about)
        display(figure, metadata={"image/png": {"alt": title, "figure": f"{own}/{name}"}})
        plt.close(figure)

    def decide(self, claim_id: str, estimate: Estimate, gate: str = "", detail: str = "") -> None:
        """Decide a claim by its test (see `findings.decide`), keep the outcome for the end, and show it."""
        one = self.found[claim_id] = findings.decide(claim_id, estimate, self.about, gate, detail)
        number = f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
        words = f"**Claim {claim_id}**, {one.claim}: **{one.verdict}**. {one.statistic}: {number}. {one.reason}"
        display(Markdown(words))

    def finish(self) -> pd.DataFrame:
        """Write the results file of this run, the last act of a notebook; return the verdicts as a table to show."""
        found = [self.found[name] for name in sorted(self.found)]
        findings.record(found, self.figures, self.about)
        columns = ["verdict", "claim", "statistic", *findings.NUMBERS, "reason"]
        return pd.DataFrame([vars(one) for one in found], [one.finding for one in found], columns).round(4)


@dataclass
class StudyRun(NotebookRun):
    """A notebook that trains models: what is compared, the data of the plain condition, and every model needed."""

    study: Study = field(kw_only=True)
    data: Dataset = field(kw_only=True)
    models: list[Recipe] = field(kw_only=True)


def begin(notebook: str, scale: str, dataset: str, seeds: int, captions: str = "", image: str = "") -> StudyRun:
    """Load the data, list the models of a notebook, and print where its numbers will come from.

    `captions` (with commas between several) and `image` name columns that are not found by themselves. Raise
    ValueError for an unknown scale or no seeds, DataError for data that cannot be read or lack classes.
    """
    if seeds < 1:
        raise ValueError(f"seeds: expected a whole number of at least 1, got {seeds}")
    figures.theme()
    prepare.cache_clear()  # so that a file that was changed since is read again
    conditions = runs.plan(notebook, scale, dataset, captions, image)
    study = Study(conditions, tuple(range(seeds)), SCALES[scale].augmentations)
    data, needed = prepare(conditions[study.plain].data), all_models(conditions, study.seeds)
    about = provenance(notebook, scale, dataset, seeds, data.fingerprint, map(runs.run_key, needed))
    if scale == "smoke":
        print("SMOKE: this run shows that the machinery works. Its numbers mean nothing, and nothing is decided.")
    if older := store.older_than(VERSION):
        print(f"[NOTE] {older} holds models of an older version of lib, which are not used: delete it to free space.")
    config, absent = data.config, runs.missing(needed)
    sizes = f"{config.shared:,} shared + {config.pool // 2:,} of {config.pool:,} pool pairs per model"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else about["device"]
    versions = f"{device}, {about['precision']}, torch {torch.__version__}, commit {about['commit']}"
    print(f"{about['name']}, scale {scale}: {sizes}, {seeds} seed{'s' * (seeds > 1)} · {versions}")
    print(f"{len(needed) - len(absent)} of {len(needed)} models are in the store", flush=True)
    return StudyRun(about, study=study, data=data, models=needed)


def provenance(notebook: str, scale: str, dataset: str, seeds: int, fingerprint: str, keys: Iterable[str]) -> dict:
    """Return the provenance of figures: notebook, data, models (digest of their keys), commit, device and versions."""
    return {
        "notebook": notebook,
        "dataset": findings.slug(dataset),
        "name": findings.short_name(dataset),
        "data": fingerprint,
        "scale": scale,
        "seeds": seeds,
        "runs": hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:16],
        "commit": findings.commit(),
        "claims_commit": findings.git("log", "-1", "--format=%h", "--abbrev=10", "--", "lib/companion/claims.json"),
        "device": models.device().type,
        "precision": models.precision(),
        "versions": {name: version(name) for name in VERSIONS},
    }
