"""Shards for open_clip_train: they hold the split and the truth, and the printed command trains on them."""

import io
import json
import shlex
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from PIL import Image

from lib import checkpoints, export
from lib.captions import DataError
from lib.recipes import f_and_g
from lib.train import training_rows

# open_clip_train's own main; its distributed model is told about devices, which on a CPU it must not be
ON_CPU = """
import sys, torch
from open_clip_train.main import main
usual = torch.nn.parallel.DistributedDataParallel
torch.nn.parallel.DistributedDataParallel = lambda model, device_ids, **rest: usual(model, **rest)
main(sys.argv[1:])
"""


@pytest.fixture
def exported(prepared, tmp_path):
    """Return the folder and the commands of an export."""
    return tmp_path, export.export(replace(TINY, epochs=1), tmp_path, "ViT-S-32-alt")


def test_shards_hold_the_training_pairs_of_either_model_and_what_was_planted(exported, prepared):
    folder, _ = exported
    scored = pd.read_parquet(folder / "pairs.parquet")
    for name, recipe in zip("fg", f_and_g(TINY, 0), strict=True):
        rows, found = training_rows(recipe, prepared), {}
        for path in sorted((folder / name).glob("*.tar")):
            with tarfile.open(path) as tar:
                found |= {entry.name: tar.extractfile(entry).read() for entry in tar}
        assert len(list((folder / name).glob("*.tar"))) == export.LEAST and len(found) == 3 * len(rows)
        for row in rows:
            image = np.array(Image.open(io.BytesIO(found[f"{row:08}.png"]))).transpose(2, 0, 1)
            truth = json.loads(found[f"{row:08}.json"])
            assert (image == prepared.images[row]).all() and found[f"{row:08}.txt"].decode() == prepared.captions[row][
                0
            ]
            assert truth["corruption"] == prepared.table.loc[row, "corruption"]
        assert (
            scored[f"seen_{name}"].sum()
            == np.isin(rows, prepared.half("candidate" if name == "f" else "independent", 0)).sum()
        )


def test_two_processes_of_open_clip_train_train_on_them_and_notebook_05_can_load_what_they_leave(exported, tmp_path):
    pytest.importorskip("webdataset", reason="webdataset is not installed: ./run_all.sh --test installs it")
    _, (f, _, score) = exported
    (tmp_path / "on_cpu.py").write_text(ON_CPU)
    words = shlex.split(f)
    words[words.index("-m") : words.index("open_clip_train.main") + 1] = ["--", str(tmp_path / "on_cpu.py")]
    words[0] = str(Path(sys.executable).with_name("torchrun"))
    words[words.index("--workers") + 1] = "1"
    done = subprocess.run([*words, "--device", "cpu", "--dist-backend", "gloo"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    named = shlex.split(score)[shlex.split(score).index("--models") + 1].split(",")
    loaded = checkpoints.load(named[0])
    assert all(torch.isfinite(weights).all() for weights in loaded.model.parameters())


def test_an_architecture_that_does_not_exist_is_refused_before_anything_is_written(prepared, tmp_path):
    with pytest.raises(DataError, match=r"--models: .* no architecture 'ViT-B-33'. Did you mean 'ViT-B-32'"):
        export.export(TINY, tmp_path / "out", "ViT-B-33")
    assert not (tmp_path / "out").exists()
