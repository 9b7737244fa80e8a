"""Five numbers of smoke that must not move when code does.

They guard the numerics by their values instead of by hashes of the source: a renamed variable passes, another batch
order, crop or score does not. Where a change is meant to move them, raise recipes.VERSION and note the new values here.
"""

import numpy as np
import pandas as pd
import pytest

from lib import runs, stats, tables
from lib.recipes import CONDITIONS, SCALES, Study

GOLDEN = {"2a": -0.00867233, "2f": -0.0488755, "2i": 0.0216317, "3b": 0.0701217, "4f": 0.0165045}  # 2 seeds, fp32


def at_equal_loss(curves):
    """Return text minus image retrained: mean CLIPMem of the pool where both have reached the larger final loss."""
    means, gaps = tables.pool(curves).groupby(["seed", "condition", "epoch"])[["loss", "clipmem"]].mean(), []
    for seed in (0, 1):
        image, text = (means.loc[seed, f"{name} retrained"] for name in ("image", "text"))
        level = max(image["loss"].min(), text["loss"].min())
        there = [np.interp(-level, -one["loss"].cummin(), one["clipmem"]) for one in (text, image)]
        gaps.append(there[0] - there[1])
    return np.mean(gaps)


def test_smoke_gives_the_numbers_that_it_always_gave(trained):
    mitigations = runs.plan("04_mitigation_utility", "smoke", "scenes")
    conditions = CONDITIONS["03_encoder_attribution"](mitigations["CLIP"]) | mitigations
    names = ("CLIP", "image retrained", "text retrained", "text noise 0.5")
    study = Study({name: conditions[name] for name in names}, (0, 1), SCALES["smoke"].augmentations)
    pairs = tables.pool(tables.score_pairs(study))
    plain = pairs[pairs["condition"] == "CLIP"]
    clean = plain[plain["corruption"] == "clean"]
    found = {
        "2a": stats.difference(plain).value,  # CLIPMem, swapped - clean
        "2f": stats.trend(clean[clean["vagueness"] <= 0.5], x="vagueness").value,
        "2i": stats.difference(plain, high="inverted").value,
        "3b": at_equal_loss(pd.concat([tables.during_training(study, name) for name in names[1:3]])),
        "4f": stats.mean(tables.clipmem_drop(pairs, "text noise 0.5"), "drop").value,
    }
    assert found == pytest.approx(GOLDEN, abs=1e-4)
