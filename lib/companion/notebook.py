"""How a notebook begins and ends: data and models at a scale, provenance, figures kept, claims decided."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from lib import data as sets
from lib import model as models
from lib import runs, store
from lib.companion import figures, findings
from lib.data import Dataset, prepare
from lib.recipes import SCALES, Recipe, Study, all_models, f_and_g
from lib.stats import Estimate


@dataclass
class NotebookRun:
    """What a notebook works on, and what it leaves in `runs/results/`: figures with their tables, decided claims."""

    about: dict[str, Any]  # the provenance of its figures
    study: Study | None = None  # what is compared; None in notebook 05, which trains nothing
    data: Dataset | None = None  # of the plain condition
    models: Sequence[Recipe] = ()  # every one that is needed
    figures: list[str] = field(default_factory=list)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)  # by claim: the last decision counts

    def keep(self, figure: Figure, name: str, table: pd.DataFrame, private: bool = False) -> None:
        """Show a figure here, and save it as `NN_name` with its table. `private`: it shows pictures or captions; those
        of photographs may not be published, and are saved in `runs/private/`."""
        name = f"{self.about['notebook'][:2]}_{name}"
        folder = findings.results_folder(**self.about)
        if private and self.about["dataset"] != "scenes":
            folder = store.root() / "private" / folder.name
        elif name not in self.figures:
            self.figures.append(name)
        figures.footer(figure, self.about)
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):  # same figure, same bytes
            figure.savefig(buffer := io.BytesIO(), format=kind, dpi=150, metadata=metadata)
            store.write_bytes(folder / f"{name}.{kind}", buffer.getvalue())
        cells = table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
        store.write_bytes(folder / f"{name}.csv", cells)
        title = " ".join(figure.get_suptitle().split())
        about = {"figure": name, "title": title, "footer": figure.get_supxlabel(), "place": len(self.figures)}
        about |= {"rows": len(table), "csv_sha256": hashlib.sha256(cells).hexdigest()}
        store.write_json(folder / f"{name}.json", self.about | about)
        figures.show(buffer.getvalue(), title, f"{folder.name}/{name}", figure.get_figwidth())
        plt.close(figure)

    def decide(self, claim_id: str, estimate: Estimate, gate: str = "", detail: str = "") -> None:
        """Decide a claim by its test (see `findings.decide`), keep the outcome for the end, and show it."""
        one = self.found[claim_id] = findings.decide(claim_id, estimate, self.about, gate, detail)
        number = f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
        words = "**Claim {finding}**, {claim}: **{verdict}**. {statistic}: {number}. {reason}"
        display(Markdown(words.format(number=number, **one)))

    def finish(self) -> pd.DataFrame:
        """Write the results file of this run, the last act of a notebook; return the verdicts as a table to show."""
        found, models = [self.found[name] for name in sorted(self.found)], list[dict]()
        study = self.study if not runs.PUBLISHED else None  # what was read is published already
        for (name, base), seed in product(study.conditions.items(), study.seeds) if study else ():
            for role, recipe in zip("fg", f_and_g(base, seed), strict=True):
                models.append({"condition": name, "seed": seed, "role": role, "key": runs.run_key(recipe)})
        folder = findings.results_folder(**self.about)
        for config in {one.data for one in study.conditions.values()} if study else ():
            store.write_bytes(folder / config.file, sets.truth(prepare(config)).to_parquet(compression="zstd"))
        findings.record(found, self.figures, self.about, models)
        columns = ["verdict", "claim", "statistic", *findings.NUMBERS, "reason"]
        return pd.DataFrame(found, sorted(self.found), columns).round(4)


def begin(notebook: str, scale: str, dataset: str, seeds: int, captions="", image="", scores="own") -> NotebookRun:
    """Load the data, list the models of a notebook, and print where its numbers will come from. `captions` and `image`:
    see `runs.plan`. `scores`: "published" reads those of the reference, where it has some; "own" trains and measures.
    Raise ValueError for an unknown scale or word, DataError for data that cannot be read or lack classes."""
    if scores not in ("published", "own"):
        raise ValueError(f"scores: expected 'published' or 'own', got {scores!r}")
    figures.theme()
    for known in (runs.PUBLISHED, sets.PUBLISHED):
        known.clear()
    prepare.cache_clear()  # so that a file that was changed since is read again
    folder = findings.reference_folder(dataset, scale) / "scores"
    ours = scores == "published" and findings.slug(dataset) == dataset  # no path, and nobody's data on the Hub
    study = runs.read_published(folder, notebook, scale, dataset) if ours else None
    if study is None:
        conditions = runs.plan(notebook, scale, dataset, captions, image)
        study = Study(conditions, tuple(range(seeds)), SCALES[scale].augmentations)
    data, needed = prepare(study.conditions[study.plain].data), [*runs.PUBLISHED]
    needed = needed or all_models(study.conditions, study.seeds)
    about = provenance(notebook, scale, dataset, len(study.seeds), data.fingerprint, map(runs.run_key, needed))
    if runs.PUBLISHED:
        figure = next(findings.reference_folder(dataset, scale).glob(f"{notebook[:2]}_*.json"))
        about |= {name: findings.read_json(figure)[name] for name in ("device", "precision")}  # what they were made on
        about["results"] = "published"  # apart from those of the reader's own runs
    if scale == "smoke":
        print("SMOKE: this run shows that the machinery works. Its numbers mean nothing, and nothing is decided.")
    config, absent = data.config, runs.missing(needed)
    sizes = f"{config.shared:,} shared + {config.pool // 2:,} of {config.pool:,} pool pairs per model"
    versions = f"{about['device']}, {about['precision']}, torch {torch.__version__}, commit {about['commit']}"
    print(f"{about['name']}, scale {scale}, seeds {about['seeds']}: {sizes} · {versions}\nData: {data.said}")
    if not runs.PUBLISHED:
        print(f"{len(needed) - len(absent)} of {len(needed)} models are in the store", flush=True)
    return NotebookRun(about, study, data, needed)


def provenance(notebook: str, scale: str, dataset: str, seeds: int, fingerprint: str, keys: Iterable[str]) -> dict:
    """Return the provenance of figures: notebook, data, models (digest of their keys), commit, device and versions."""
    about: dict[str, Any] = {"notebook": notebook, "dataset": findings.slug(dataset), "scale": scale, "seeds": seeds}
    about |= {"name": findings.short_name(dataset), "data": fingerprint, "commit": findings.commit()}
    about["runs"] = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:16]
    device = torch.cuda.get_device_name() if models.device().type == "cuda" else models.device().type
    about |= {"device": device, "precision": models.precision()}
    return about | {"versions": {name: version(name) for name in ("torch", "open_clip_torch", "numpy", "scipy")}}
