"""The look of all figures, and the plots that notebooks share: they draw a tidy table and return what they drew.

`scores`: rows of `tables.score_pairs`; their external pairs are the noise floor. Intervals: value, low and high."""

import textwrap
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, display
from matplotlib.pyplot import Axes, Figure

from lib import stats

# Okabe & Ito's colours, which people with any form of colour blindness tell apart: https://jfly.uni-koeln.de/color/
BLUE, SKY, GREEN, ORANGE, RED, PINK, NOISE = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#8c8c8c"
COLOURS = {"external": NOISE, "clean": SKY, "partly_swapped": ORANGE, "inverted": GREEN, "swapped": RED}
OBJECTIVES = {"supervised": GREEN, "CLIP": "black", "self-supervised": BLUE}
MARKERS = {"supervised": "s", "CLIP": "o", "self-supervised": "^"}  # so that they can be told apart in grey
ENCODERS = {"both": "black", "text": PINK, "image": BLUE}
MARKERS |= {"text": "s", "image": "^", "SigLIP": "s", "other captions": "D", "range-normalised": "D"}
MARKERS |= {"did not see the pair": "D", "text encoder": "s", "image encoder": "^"}
NAMED = {"both": "both encoders", "text": "text encoder alone", "image": "image encoder alone"}
MITIGATED = "#6a3d9a"  # all mitigations: their points carry their names
NAMES = {"clipmem": "CLIPMem", "similarity_in": "similarity", "loss_in": "loss", "early_loss_in": "early loss"}
NAMES |= {"mean_loss_in": "mean loss", "augmentation_in": "change under augmentation", "lemon_in": "LEMoN"}
NAMES |= {"similarity_out": "held-out similarity", "loss_out": "held-out loss", "lemon_out": "held-out LEMoN"}
NAMES["weighted"] = "½ in − out"
SMALL: dict = {"x": 0.01, "ha": "left", "fontsize": 11, "color": "#595959", "parse_math": False}


def theme() -> None:
    """Set the look of all figures, readable at a notebook's width and on a slide; let tables show whole sentences."""
    pd.set_option("display.max_colwidth", None, "display.html.use_mathjax", False)  # two dollars are no equation
    sns.set_theme(context="notebook", style="whitegrid", palette=[BLUE, RED, GREEN, PINK, SKY, ORANGE])
    plt.rcParams.update({"figure.figsize": (7.5, 4.2), "figure.constrained_layout.use": True})
    plt.rcParams.update({"axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"legend.frameon": False, "legend.fontsize": 11, "pdf.fonttype": 42, "grid.color": "#e6e6e6"})


def wall(images, captions: Sequence[str], titles: Sequence[str], columns=4, colours=(), figure=None) -> Figure:
    """Show pictures uint8 `[N, 3, H, W]`, a title above and a caption below each, both literally: `$` is not TeX.
    `colours`: of a frame around each picture. `figure`: where to draw, such as a part of a figure; else a new one."""
    rows, frames = -(-len(images) // columns), [*colours] or ["none"] * len(images)
    figure = figure or plt.figure(figsize=(2.4 * columns, 3.8 * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    plt.setp(axes, xticks=[], yticks=[], frame_on=False)  # more than there are pictures
    for ax, image, caption, title, frame in zip(axes.flat, images, captions, titles, frames, strict=False):
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        ax.set_frame_on(True)
        plt.setp(ax.spines.values(), color=frame, linewidth=3, visible=True)
        ax.set_title(title, fontsize=11, loc="center", parse_math=False)
        lines = [textwrap.fill(line, 25, max_lines=5, placeholder=" …") for line in caption.splitlines()]
        ax.set_xlabel("\n".join(lines), fontsize=11, parse_math=False)
    return figure


def headline(figure: Figure, sentence: str, bars: str = "95 % intervals over seeds and pairs") -> None:
    """Write above a figure what to see; below it stands what the bars mean, before `footer` adds the source."""
    sentence = textwrap.fill(sentence, int(8.6 * figure.get_figwidth()), break_on_hyphens=False)  # characters an inch
    figure.suptitle(sentence, x=0.01, ha="left", fontsize=13, weight="bold", parse_math=False)
    figure.supxlabel(f"Bars: {bars}." if bars else " ", **SMALL)


def footer(figure: Figure, about: Mapping) -> None:
    """Write below a figure whose numbers these are (`notebook.provenance`), and across it what smoke is."""
    seeds = f"{about['seeds']} seed{'s' * (about['seeds'] > 1)}"
    source = f"{about['name']}, scale {about['scale']}, {seeds}. {figure.get_supxlabel()}".strip()
    figure.supxlabel(textwrap.fill(source, int(11 * figure.get_figwidth())), **SMALL)
    if about["scale"] == "smoke":
        mark: dict = {"ha": "center", "va": "center", "color": RED, "alpha": 0.35, "zorder": 10, "weight": "bold"}
        figure.text(0.5, 0.5, "SMOKE: machinery only", rotation=20, fontsize=4.5 * figure.get_figwidth(), **mark)


def show(png: bytes, title: str, name: str, inches: float) -> None:
    """Show a picture with its title as the alternative text; `name`: of the published figure, for the pages."""
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    tag = f'<img src="{source}" alt="{escape(title)}" style="max-width: 100%; width: {100 * inches:.0f}px">'
    display(HTML(tag), metadata={"text/html": {"alt": title, "figure": name}})


def points(ax: Axes, rows: pd.DataFrame, x: str, y: str, **style) -> None:
    """Draw values with their intervals: along the x axis when `x` is "value", along the y axis when `y` is."""
    style = {"ms": 7, "mec": "white", "capsize": 3, "zorder": 4, "linestyle": "none", **style}
    style["xerr" if x == "value" else "yerr"] = rows["value"] - rows["low"], rows["high"] - rows["value"]
    ax.errorbar(rows[x], rows[y], **style)


def legend_below(ax: Axes) -> None:
    """Put the legend under the axes' labels, where it cannot lie on the data."""
    handles, labels = ax.get_legend_handles_labels()
    place: dict = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 3.8}  # pad: times the font size
    ax.legend(handles, [label.replace("_", " ") for label in labels], ncols=3, **place)


def curve(rows: pd.DataFrame, ax: Axes, x: str, colour: str, label: str, marker: str = "o") -> None:
    """Draw values along `x`, joined by a line, with their intervals."""
    rows = rows.sort_values(x)
    ax.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    points(ax, rows, x, "value", color=colour, marker=marker, label=label, linestyle="-")


def by_corruption(scores: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw a violin of CLIPMem per corruption in the pool, with means and intervals; a grey violin below each shows its
    noise floor, a tick the mean of that. Return the rows of the pool."""
    pool, floor = (scores[scores["subset"] == name] for name in ("pool", "external"))
    names = [name for name in COLOURS if (pool["corruption"] == name).any()]
    upper, lower = ([rows.loc[rows["corruption"] == name, "clipmem"] for name in names] for rows in (pool, floor))
    look: dict = {"positions": range(len(names)), "orientation": "horizontal", "showextrema": False}
    ax.violinplot(upper, side="low", widths=1.3, **look)
    ax.violinplot(lower, side="high", widths=0.5, **look)
    for body, colour in zip(ax.collections, [COLOURS[name] for name in names] + [NOISE] * len(names), strict=True):
        body.set(facecolor=colour, alpha=0.75, linewidth=0)  # violinplot's own `facecolor` needs matplotlib 3.11
    ax.plot([part.mean() for part in lower], np.arange(len(names)) + 0.12, "|", color="black", ms=9)
    means = stats.means(pool, "corruption").set_index("corruption").loc[names].reset_index()
    labels = means["corruption"].str.replace("_", " ") + "\n" + means["n"].astype(str) + " pairs"
    forest(means.assign(name=labels), ax)
    ax.set(xlabel="CLIPMem", ylim=(len(names) - 0.45, -0.8))
    return pool


def forest(rows: pd.DataFrame, ax: Axes, colours=None, by=None, zero=True, gaps=False) -> pd.DataFrame:
    """Draw a line per `name`: its value with interval, and side by side, in `colours`, one for each value of column
    `by`. With `gaps` the values are differences, and a grey bar spans those that are too small to be found."""
    names = list(dict.fromkeys(rows["name"]))
    if gaps:
        reach = rows["smallest_detectable"].where(np.isfinite(rows["smallest_detectable"]), 0.0)
        ax.barh(range(len(rows)), 2 * reach, left=-reach, height=0.75, color="#e3e3e3", zorder=0)
    parts = list(rows.groupby(by, sort=False)) if by else [("", rows)]
    for place, (group, part) in enumerate(parts):
        shift = (place - (len(parts) - 1) / 2) * 0.22  # three then fill two thirds of the space of a name
        look = {"color": (colours or {}).get(group, "black"), "marker": MARKERS.get(group, "o")}
        drawn = part.assign(y=[names.index(name) + shift for name in part["name"]])
        points(ax, drawn, "value", "y", label=NAMED.get(group, group), **look)
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    if zero:
        ax.axvline(0, color="black", linewidth=0.8, zorder=1)
    if by:
        legend_below(ax)
    return rows
