"""Five numbers of smoke, from the code before it was rebuilt: what must not move when code does.

They guard the numerics by their values instead of by hashes of the source: a renamed variable passes, another batch
order, crop or score does not. Where a change is meant to move them, raise recipes.VERSION and note the new values here.
"""

from dataclasses import replace

import pytest

from lib import interventions, stats, study, tables
from lib.recipes import CONDITIONS

GOLDEN = {"2a": -0.00574369, "2e": 0.192977, "2g": 0.0107228, "3b": 0.0910707, "4c": 0.00826253}  # 3 seeds, fp32


def test_smoke_gives_the_numbers_that_it_always_gave(trained):
    begun = study.begin("04_mitigation_utility", "smoke", "scenes", 3)
    conditions = CONDITIONS["03_encoder_attribution"](begun.base) | begun.conditions
    names = ("CLIP", "image retrained", "text retrained", "noise before 0.15")
    begun = replace(begun, conditions={name: conditions[name] for name in names})
    pairs = tables.candidates(tables.score_pairs(begun))
    plain, image, text = (pairs[pairs["condition"] == name] for name in names[:3])
    found = {
        "2a": stats.difference(plain),  # CLIPMem, swapped - clean
        "2e": stats.trend(plain[plain["corruption"] == "clean"], x="vagueness"),
        "2g": stats.difference(plain, high="inverted"),
        "3b": interventions.gap(text, image, "clipmem"),
        "4c": interventions.less_memorized(pairs, "noise before 0.15"),
    }
    assert {claim: estimate.value for claim, estimate in found.items()} == pytest.approx(GOLDEN, abs=1e-4)
