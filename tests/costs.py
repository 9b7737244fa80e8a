"""What a model costs: read from what is in a store, and measured for the paper's sizes on tensors of their shape.

    python tests/costs.py [STORE ...] > costs.txt

The first table has seconds per model from the `made.json` of every run, which include its evaluations, while as many
models as the column says were trained side by side. The second one takes three steps at scale `paper`, of ViT-B/32 and,
with smaller patches, of ViT-B/16, on random pictures and captions, and extrapolates to the whole recipe.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch
from joblib import cpu_count

from lib import model as models
from lib import recipes, train
from lib.objectives import Resident

VOCABULARY = 49_408  # of open_clip's tokenizer
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


def full_size(patch: int) -> dict[str, object]:
    """Return what one model of scale `paper` costs, from steps on random tensors of its shape."""
    recipe = recipes.at_scale("paper", "scenes")
    data, config = recipe.data, recipes.model_config(recipe.model)
    config["vision_cfg"]["patch_size"] = patch
    torch.set_num_threads(cpu_count())  # one large model, and not several small ones side by side
    model = models.build(config, data.pixels, VOCABULARY, data.context, seed=0).to(models.device()).train()
    images = torch.randint(0, 256, (BATCH, 3, data.pixels, data.pixels), dtype=torch.uint8)
    tokens = torch.randint(1, VOCABULARY - 1, (BATCH, 1, data.context))
    tokens[:, :, -1] = VOCABULARY - 1
    pairs = Resident(images, torch.arange(BATCH), tokens, torch.zeros(BATCH, 0))
    optimiser, few = train.make_optimiser(model, recipe), recipes.replace(recipe, batch=BATCH)
    train.run_epoch(few, 0, pairs, model, optimiser)
    start = perf_counter()
    for epoch in (1, 2):
        train.run_epoch(few, epoch, pairs, model, optimiser)
    each, visits = (perf_counter() - start) / 2 / BATCH, (data.shared + data.pool // 2) * recipe.epochs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes on Linux
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return {"model": f"ViT-B/{patch}", "million parameters": size, "precision": models.precision(),
            "pairs per second": 1 / each, "hours per model": visits * each / 3600, "peak GB": peak}  # fmt: skip


if __name__ == "__main__":
    rows = [row for store in sys.argv[1:] for row in kept(Path(store))]
    if rows:
        by = ["data", "model", "device", "precision", "side by side", "pairs", "epochs"]
        table = pd.DataFrame(rows).groupby(by)[["seconds", "megabytes"]]
        print(table.median().assign(models=table.size()).round(1).reset_index().to_string(index=False))
    print(pd.DataFrame([full_size(32), full_size(16)]).round(1).to_string(index=False))
