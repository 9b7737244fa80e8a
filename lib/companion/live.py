"""Two small models that are in the repository answer captions that a reader types."""

import re
from collections.abc import Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from ipywidgets import Text, interact
from matplotlib.figure import Figure
from open_clip.model import CLIP
from safetensors.torch import load_file

from lib import scores
from lib.captions import encode
from lib.companion import figures
from lib.companion.findings import read_json, reference_folder
from lib.data import Dataset, stand_in
from lib.model import embed_images, embed_texts
from lib.recipes import DataConfig, Recipe
from lib.train import fresh

FOLDER = reference_folder("scenes", "laptop") / "live"
SAW = {"f": "f, which was trained on this pair", "g": "g, which was not"}
LOOK = {"f": {"color": "black"}, "g": {"color": "white", "edgecolor": "black", "hatch": "//"}}


class Live:
    """One f and one g of scenes, seed 0, which are in the repository, and a pair that only f was trained on."""

    def __init__(self, pair_id: int):
        self.data, self.models = load()
        self.row = int(np.flatnonzero(self.data.pair_ids == pair_id)[0])
        self.trained, self.true = self.data.captions[self.row][0], self.data.originals[self.row][0]
        held = scores.held_out(self.data)
        self.held = {role: scores.embed_pairs(model, self.data, held) for role, model in self.models.items()}

    def unseen(self, caption: str) -> list[str]:
        """Return the words of a caption that no caption of these data has."""
        ids = self.data.token_ids
        return [word for word in re.findall(r"\w+", caption) if not np.isin(encode([[word]], 1, 24), ids).all()]

    def align(self, caption: str) -> dict[str, float]:
        """Return the alignment of the pair's image with a caption under f and g, without the words they never saw."""
        known = " ".join(word for word in re.findall(r"\w+|,", caption) if word not in self.unseen(caption))
        ids = encode([[known]], 1, self.data.tokens.shape[2])[:, 0]
        tokens, found = np.searchsorted(self.data.token_ids, ids), dict[str, float]()
        for role, model in self.models.items():
            image, text = embed_images(model, self.data.images, np.array([self.row])), embed_texts(model, tokens)
            found[role] = float(scores.align(image, text, self.held[role][0], self.held[role][1], torch.tensor([-1])))
        return found

    def draw(self, captions: Sequence[str]) -> Figure:
        """Draw the image, and beside it how well f and g align it with each caption."""
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.4 + 0.75 * len(captions)), width_ratios=[1, 3.2])
        left.imshow(self.data.images[np.array([self.row])][0].transpose(1, 2, 0), interpolation="nearest")
        left.set_axis_off()
        for role, shift in {"f": -0.19, "g": 0.19}.items():
            values = [self.align(caption)[role] for caption in captions]
            right.barh(np.arange(len(captions)) + shift, values, height=0.36, label=SAW[role], **LOOK[role])
        right.axvline(0, color="black", linewidth=0.8)
        right.set_yticks(range(len(captions)), [one[:70] for one in captions], parse_math=False)
        right.set_xlabel("alignment of image and caption")
        right.invert_yaxis()
        figures.legend_below(right)
        return figure

    def play(self, first: str) -> None:
        """Let a reader type captions, and begin with one."""

        def answer(caption: str) -> None:
            if unseen := self.unseen(caption):
                display(Markdown(f"These models never saw: {', '.join(unseen)}. They read the other words."))
            display(figure := self.draw([self.trained, caption, self.true]))
            plt.close(figure)

        interact(answer, caption=Text(first, layout={"width": "90%"}, continuous_update=False))


def load() -> tuple[Dataset, dict[str, CLIP]]:
    """Return the two models that are in the repository, "f" and "g", and their scenes with the tokens they read."""
    models = dict[str, CLIP]()
    for role in SAW:
        told, weights = read_json(FOLDER / f"{role}.json"), load_file(FOLDER / f"{role}.safetensors")
        config = DataConfig(**told["recipe"]["data"] | {"caption_columns": ()})
        scenes = stand_in(config, pd.read_parquet(FOLDER.parent / "scores" / config.file))
        token_ids, length = np.array(told["token_ids"]), len(weights["positional_embedding"])
        tokens = np.searchsorted(token_ids, scenes.ids[:, :, :length])
        scenes = replace(scenes, tokens=tokens, token_ids=token_ids)
        models[role] = fresh(Recipe(**told["recipe"] | {"data": config}), scenes).eval()
        models[role].load_state_dict({name: weight.float() for name, weight in weights.items()})
    return scenes, models
