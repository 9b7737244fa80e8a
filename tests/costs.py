"""What a model costs: read from what is in a store, and measured for the paper's sizes on tensors of their shape.

    python tests/costs.py [STORE ...] > costs.txt

The first table has seconds per model from the `made.json` of every run, which include its evaluations, while as many
models as the column says were trained side by side. The second one takes a few steps at the scales `paper` (ViT-B/32)
and `paper16`, on random pictures and captions, and extrapolates to the whole recipe.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch
from joblib import cpu_count

from lib import costs, recipes
from lib import model as models

BATCH = 64  # at once here; the recipe's batch does not change the seconds per pair


def kept(store: Path) -> list[dict[str, object]]:
    """Return what the runs of a store took, a row each."""
    rows = []
    for path in store.glob("run/*/made.json"):
        made, about = json.loads(path.read_text()), json.loads(path.with_name("about.json").read_text())
        recipe = about["recipe"]
        pairs = recipe["data"]["shared"] + recipe["data"]["pool"] // 2
        rows.append({
            "data": recipes.published_name(about["dataset"]), "model": recipe["model"], "device": made["device"],
            "precision": about["precision"], "side by side": made["side_by_side"], "pairs": pairs,
            "epochs": recipe["epochs"], "seconds": made["seconds"],
            "megabytes": sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6,
        })  # fmt: skip
    return rows


def full_size(scale: str) -> dict[str, object]:
    """Return what one model of a scale costs, from steps on random tensors of its shape."""
    recipe = recipes.replace(recipes.at_scale(scale, "scenes"), batch=BATCH)
    data = recipe.data
    torch.set_num_threads(cpu_count())  # one large model, and not several small ones side by side
    seconds, memory, weights = costs.trial(recipe, costs.WORDS, data.context)
    visits = (data.shared + data.pool // 2) * recipe.epochs
    return {"scale": scale, "million weights": weights / 1e6, "precision": models.precision(), "GB of memory": memory,
            "pairs per second": BATCH / seconds, "hours per model": visits * seconds / BATCH / 3600}  # fmt: skip


if __name__ == "__main__":
    rows = [row for store in sys.argv[1:] for row in kept(Path(store))]
    if rows:
        by = ["data", "model", "device", "precision", "side by side", "pairs", "epochs"]
        table = pd.DataFrame(rows).groupby(by)[["seconds", "megabytes"]]
        print(table.median().assign(models=table.size()).round(1).reset_index().to_string(index=False))
    print(pd.DataFrame([full_size("paper"), full_size("paper16")]).round(1).to_string(index=False))
