"""Are planted captions found in models that open_clip_train trained? A table that README quotes.

    python tests/own_models.py PARQUET FOLDER TABLE     about 40 minutes on two cores

PARQUET is split as for this companion's own models, and some captions are swapped. open_clip_train trains f and g, in
one process, on the shards that lib/export.py writes to FOLDER, and notebook 05 scores both. TABLE: how well each score
tells swapped captions from clean ones, among the pairs that one of the two was trained on, and members from others.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from lib import store
from lib.export import export
from lib.recipes import Data, Recipe, slug

ARCHITECTURE = "ViT-S-32-alt"  # the smallest of open_clip's: two cores train it
SCORES = ("clipmem", "lemon_f", "lemon_g", "loss_f", "loss_g", "similarity_f", "similarity_g")


def train(command: str, batch: int) -> None:
    """Run a printed command in one process: several of them need an accelerator each."""
    words = shlex.split(command)
    words = words[words.index("open_clip_train.main") :]
    words[words.index("--batch-size") + 1] = str(batch)
    subprocess.run([sys.executable, "-m", *words], check=True)


def found(pairs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return the areas under the ROC curve, a row for each score."""
    table = table.set_index("pair_id").join(pairs["corruption"])
    member = (table["seen_f"] | table["seen_g"]).astype(bool)
    caught = table[member & table["corruption"].isin(["clean", "swapped"])]
    rows = []
    for name in SCORES:
        sign = -1 if name.startswith("similarity") else 1
        wrong = roc_auc_score(caught["corruption"] == "swapped", sign * caught[name])
        row = {"score": name, "swapped against clean (ROC AUC)": wrong, "members against others (ROC AUC)": np.nan}
        if name == "clipmem":
            row["members against others (ROC AUC)"] = roc_auc_score(member, table[name])
        rows.append({**row, "swapped": (caught["corruption"] == "swapped").sum(), "pairs": len(caught)})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    dataset, folder, file = sys.argv[1:]
    data = Data(os.path.abspath(dataset), 224, shared=0, pool=1200, external=400, test=0, probe=0, context=77)
    recipe = Recipe(data, epochs=25, batch=50, lr=5e-4)
    *training, scoring = export(recipe, Path(folder).absolute(), ARCHITECTURE)
    for command in training:
        train(command, recipe.batch)
    words = shlex.split(scoring)
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    subprocess.run(["bash", str(store.ROOT / words[0]), *words[1:]], check=True, env=environ)
    pairs = Path(folder).absolute() / "pairs.parquet"
    scored = store.root() / "private" / f"{slug(str(pairs))}-laptop" / "05_scores.parquet"
    rows = found(pd.read_parquet(pairs, columns=["corruption"]), pd.read_parquet(scored))
    rows.to_csv(file, index=False, float_format="%.3f")
    print(rows.to_string(index=False))
