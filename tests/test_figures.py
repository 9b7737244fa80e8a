"""companion/figures.py: plots return what they drew and draw what they say, and text is shown as it is."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import stats
from lib.companion import figures

plt.switch_backend("Agg")
figures.theme()
pytestmark = pytest.mark.filterwarnings("error")
ORDER = np.tile(np.arange(60), 2)  # of 60 pool pairs by two seeds; a fifth is swapped, three tenths are partly swapped
SHARE = np.select([ORDER < 12, ORDER < 30], [1.0, (1 + ORDER % 3) / 4], 0.0)
POOL = pd.DataFrame({"seed": np.repeat([0, 1], 60), "pair_id": ORDER, "subset": "pool", "share_swapped": SHARE})
POOL["vagueness"] = ORDER / 60
POOL["corruption"] = np.select([SHARE == 1, SHARE > 0], ["swapped", "partly_swapped"], "clean")
POOL["clipmem"] = np.random.default_rng(0).normal(SHARE / 2, 0.1)


@pytest.fixture
def ax():
    yield plt.subplots()[1]
    plt.close("all")


def test_violins_have_the_mean_of_every_group_and_return_what_decides_the_claim(ax):
    floor = POOL.assign(subset="external", clipmem=POOL["clipmem"] / 9)
    assert stats.difference(figures.by_corruption(pd.concat([POOL, floor]), ax)) == stats.difference(POOL)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["clean\n30 pairs", "partly swapped\n18 pairs", "swapped\n12 pairs"]
    means = POOL.groupby("corruption")["clipmem"].mean()[["clean", "partly_swapped", "swapped"]]
    assert list(next(line.get_xdata() for line in ax.lines if line.get_marker() == "o")) == pytest.approx(means)


def test_forests_keep_the_order_of_names_and_draw_values_without_limits(ax):
    rows = pd.DataFrame({"name": ["b", "a"] * 2, "encoder": ["image"] * 2 + ["text"] * 2, "value": 0.5})
    figures.forest(rows.assign(low=-np.inf, high=np.inf), ax, figures.ENCODERS, "encoder")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]


def test_walls_show_dollars_literally_and_smoke_is_marked():
    texts = ["$\\frac{70", "$5 and $6", "many words " * 50, "a"]
    figure = figures.wall(np.zeros((4, 3, 8, 8), dtype=np.uint8), texts, texts, columns=3)
    figures.headline(figure, "costs $5 and $6", bars="")
    figures.footer(figure, {"name": "scenes", "scale": "smoke", "seeds": 2, "precision": "fp32"})
    figure.canvas.draw()  # where TeX is read, the first text raises
    assert figure.axes[2].get_xlabel().count("\n") == 4
    assert "SMOKE: machinery only" in [text.get_text() for text in figure.texts]
    assert figure.get_supxlabel().strip() == "scenes, scale smoke, 2 seeds."
