"""Five numbers of smoke that must not move when code does.

They guard the numerics by their values instead of by hashes of the source: a renamed variable passes, another batch
order, crop or score does not. Where a change is meant to move them, raise recipes.VERSION and note the new values here.
"""

from dataclasses import replace

import pandas as pd
import pytest

from lib import interventions, stats, study, tables
from lib.conditions import CONDITIONS

GOLDEN = {"2a": -0.00244302, "2f": -0.0867919, "2i": 0.0105859, "3b": 0.0712776, "4f": 0.0105362}  # 2 seeds, fp32


def test_smoke_gives_the_numbers_that_it_always_gave(trained):
    begun = study.begin("04_mitigation_utility", "smoke", "scenes", 2)
    conditions = CONDITIONS["03_encoder_attribution"](begun.base) | begun.conditions
    names = ("CLIP", "image retrained", "text retrained", "text noise 0.5")
    begun = replace(begun, conditions={name: conditions[name] for name in names})
    pairs = tables.pool(tables.score_pairs(begun))
    plain = pairs[pairs["condition"] == "CLIP"]
    clean = plain[plain["corruption"] == "clean"]
    curves = pd.concat([tables.during_training(begun, name) for name in names[1:3]])
    image, text = (part for _, part in interventions.at_equal_loss(curves).groupby("condition"))
    found = {
        "2a": stats.difference(plain),  # CLIPMem, swapped - clean
        "2f": stats.trend(clean[clean["vagueness"] <= 0.5], x="vagueness"),
        "2i": stats.difference(plain, high="inverted"),
        "3b": interventions.gap(text, image, "clipmem"),
        "4f": stats.mean(interventions.fall(pairs, "text noise 0.5"), "fall"),
    }
    assert {claim: estimate.value for claim, estimate in found.items()} == pytest.approx(GOLDEN, abs=1e-4)
