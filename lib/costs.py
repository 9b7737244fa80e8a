"""What training costs on this machine, measured by a few steps on random pairs of the right shape."""

import resource
import shutil
import sys
import time
from dataclasses import replace

import torch

from lib import model as models
from lib import store, train
from lib.objectives import Resident
from lib.recipes import Recipe, at_scale, model_config

WORDS = 49_408  # of open_clip's tokenizer: the most that the captions of a data set can hold


def trial(recipe: Recipe, words: int, context: int, classes: int = 0) -> tuple[float, float, int]:
    """Return the seconds of a training step, the mean of three after a first one; the most memory taken, in GB (of the
    accelerator, else of this process); and the number of weights. `words`: how many token ids the captions hold."""
    recipe, batch, pixels = replace(recipe, seed=0), recipe.batch, recipe.data.pixels
    classes = classes if recipe.objective == "label" else 0
    config, sigmoid = model_config(recipe.model, recipe.width, recipe.depth), recipe.objective == "sigmoid"
    model = models.build(config, pixels, words, context, 0, classes, sigmoid).to(models.device()).train()
    optimiser, where = train.make_optimiser(model, recipe), models.device()
    images = torch.randint(256, (batch, 3, pixels, pixels), dtype=torch.uint8).to(where)
    tokens = torch.randint(1, words, (batch, recipe.n_captions, context)).to(where)
    for count in (1, 3):
        rows, started = torch.arange(batch).repeat(count).to(where), time.monotonic()
        targets = torch.rand(len(rows), classes).softmax(dim=1).to(where)
        train.run_epoch(recipe, 0, Resident(images, rows, tokens.repeat(count, 1, 1), targets), model, optimiser)
    seconds = (time.monotonic() - started) / 3
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = torch.cuda.max_memory_allocated() if where.type == "cuda" else used
    return seconds, memory / 1e9, sum(p.numel() for p in model.parameters())


def of_scale(scale: str, dataset: str) -> str:
    """Return a sentence: the hours, the memory and the disk that a model of a scale takes. No data are read for it."""
    recipe = at_scale(scale, dataset)
    data, pairs = recipe.data, recipe.data.shared + recipe.data.pool // 2
    seconds, memory, weights = trial(recipe, WORDS, data.context)
    hours, picture = seconds * recipe.epochs * (pairs // recipe.batch) / 3600, 3 * data.pixels**2 / 1e9
    free = shutil.disk_usage(store.root()).free / 1e9
    return (
        f"{scale}, per model: {weights / 1e6:.0f} million weights, {pairs:,} pairs, {recipe.epochs} epochs: about "
        f"{hours:.1f} hours, {memory + pairs * picture:.1f} GB of memory, {4 * weights / 1e9:.1f} GB on disk (three "
        f"times that while it trains). The pictures take {sum(data.sizes().values()) * picture:.1f} GB on disk, once. "
        f"{free:.0f} GB are free there."
    )
