"""./run_all.sh --audit: wrong captions that were planted in a reader's own file are found above chance."""

import io
import subprocess

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image
from sklearn.metrics import roc_auc_score

from lib import store
from lib.companion import audit, parse
from lib.data import prepare
from lib.recipes import f_and_g

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "white": (235, 235, 235)}


@pytest.fixture
def mine(tmp_path):
    """Return a file of 400 pictures that are easy to caption, and its 40 rows with the name of another colour."""
    rng, rows, names = np.random.default_rng(0), [], [*COLOURS]
    for row in range(400):
        noise = rng.normal(0, 25, (16, 16, 3)) + rng.normal(0, 12, 3)
        picture = np.clip(COLOURS[names[row % 4]] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(buffer := io.BytesIO(), "png")
        rows.append((buffer.getvalue(), f"a {names[(row + (row % 10 == 5)) % 4]} picture"))
    pd.DataFrame(rows, columns=["image", "caption"]).to_parquet(path := tmp_path / "my pairs.parquet")
    return path, np.arange(5, 400, 10)


def test_planted_errors_are_found_above_chance_and_named_by_their_row(mine, capsys):
    path, wrong = mine
    audit.audit(parse(["smoke", "--audit", str(path), "--seeds", "3"]))
    (folder,) = (store.root() / "audit").glob("my-pairs-*")
    found, captions = pd.read_csv(folder / "pairs.csv"), pd.read_parquet(path)["caption"]
    assert found["caption"].tolist() == captions[found["row_in_file"]].tolist() and len(found) == 400
    assert found["early_loss"].is_monotonic_decreasing and (folder / "first.png").is_file()
    assert (found["error"] > 0).all(), "also of pairs that were scored once"
    swapped = found["row_in_file"].isin(wrong)
    assert roc_auc_score(swapped, found["early_loss"]) > 0.8 and swapped[:40].sum() >= 20  # by chance .5 and 4
    assert found["seeds"].value_counts().to_dict() == {3: 280, 2: 120} and {*found["near_duplicates"]} <= {*range(5)}
    assert "6 of 6 models to train" in capsys.readouterr().out


def test_every_seed_holds_out_another_tenth_and_nothing_is_corrupted(mine):
    recipes, held = audit.plan(parse(["smoke", "--audit", str(mine[0])])), list[int]()
    for seed, recipe in recipes.items():
        data, (f, g) = prepare(recipe.data), f_and_g(recipe, seed)
        assert (data.table["corruption"] == "clean").all() and data.captions == data.originals
        halves = [data.training_rows(one) for one in (f, g)]
        assert sorted(np.concatenate([*halves, data.subsets["external"]])) == [*range(400)]
        held += data.subsets["external"].tolist()
    assert len(recipes) == 10 and sorted(held) == [*range(400)]


@pytest.mark.parametrize("ignored", [["--force"], ["--dataset", "coco"], ["--only", "02"]])
def test_what_an_audit_would_ignore_is_refused(ignored, capsys):
    with pytest.raises(SystemExit):
        parse(["--audit", "my_pairs.parquet", *ignored])
    assert "--audit runs no notebooks" in capsys.readouterr().err


def test_one_seed_is_refused_as_a_command(mine):
    done = subprocess.run(
        [ROOT / "run_all.sh", "smoke", "--audit", mine[0], "--seeds", "1"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("[FAIL] --audit needs at least 2 seeds")
