"""Are planted captions found in models that open_clip_train trained? A table that README quotes.

    python tests/own_models.py PARQUET few FOLDER TABLE     about 40 minutes on two cores
    python tests/own_models.py PARQUET many FOLDER TABLE    about 50

PARQUET is split as for this companion's own models, and some captions are swapped. open_clip_train trains f and g side
by side, a thread each, on the shards that lib/export.py writes to FOLDER, and notebook 05 scores both. TABLE gets a
column: how well each score tells swapped captions from clean ones, among the pairs that one of the two was trained on,
and members from others.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
from sklearn.metrics import roc_auc_score

from lib import store
from lib.export import export
from lib.recipes import Data, Recipe, slug

ARCHITECTURE = "ViT-S-32-alt"  # the smallest of open_clip's: two cores train it
# Each model sees 600 pairs, and all of them often; or 3,800, of which 3,000 are shared, as often as 40 minutes allow
SIZES = {"few": {"shared": 0, "pool": 1200, "epochs": 25}, "many": {"shared": 3000, "pool": 1600, "epochs": 6}}
SCORES = ("clipmem", "lemon_f", "lemon_g", "loss_f", "loss_g", "similarity_f", "similarity_g")


def train(command: str, batch: int) -> subprocess.Popen[bytes]:
    """Start a printed command in one process: several of them need an accelerator each."""
    words = shlex.split(command)
    words = words[words.index("open_clip_train.main") :]
    words[words.index("--batch-size") + 1] = str(batch)
    return subprocess.Popen([sys.executable, "-m", *words], env={**os.environ, "OMP_NUM_THREADS": "1"})


def found(pairs: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """Return the areas under the ROC curve by what is told apart, and by which score."""
    table = table.set_index("pair_id").join(pairs["corruption"])
    member = (table["seen_f"] | table["seen_g"]).astype(bool)
    caught = table[member & table["corruption"].isin(["clean", "swapped"])]
    areas = {"members against others, clipmem": roc_auc_score(member, table["clipmem"])}
    for name in SCORES:
        sign = -1 if name.startswith("similarity") else 1
        areas[f"swapped against clean, {name}"] = roc_auc_score(caught["corruption"] == "swapped", sign * caught[name])
    return pd.Series(areas)


if __name__ == "__main__":
    dataset, size, folder, file = sys.argv[1:]
    shared, pool, epochs = SIZES[size].values()
    data = Data(os.path.abspath(dataset), 224, shared, pool, external=400, test=0, probe=0, context=77)
    recipe = Recipe(data, epochs=epochs, batch=50, lr=5e-4)
    *training, scoring = export(recipe, Path(folder).absolute(), ARCHITECTURE)
    trained = [train(command, recipe.batch) for command in training]
    if any([process.wait() for process in trained]):  # a list: both are waited for
        raise SystemExit("open_clip_train failed; its messages are above")
    words = shlex.split(scoring)
    environ = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    subprocess.run(["bash", str(store.ROOT / words[0]), *words[1:]], check=True, env=environ)
    pairs = Path(folder).absolute() / "pairs.parquet"
    scored = store.root() / "private" / f"{slug(str(pairs))}-laptop" / "05_scores.parquet"
    areas = found(pd.read_parquet(pairs, columns=["corruption"]), pd.read_parquet(scored))
    table = pd.read_csv(file, index_col=0) if os.path.exists(file) else pd.DataFrame(index=areas.index)
    table[f"{shared + pool // 2:,} pairs, {epochs} epochs"] = areas
    table.to_csv(file, index_label="ROC AUC", float_format="%.3f")
    print(table)
