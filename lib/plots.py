"""Figures that several notebooks share: curves by layer, points with intervals, memorization against utility.

Like those of `figures`, they take a tidy table and an axes, draw, and return what they drew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lib import stats
from lib.figures import NULL, legend_below, points

# What an image is trained to agree with, Okabe & Ito's colours as everywhere
PARADIGMS = {"label": "#009e73", "caption": "#d55e00", "view": "#0072b2"}
ENCODERS = {"image": "#0072b2", "text": "#d55e00"}
FAMILIES = {"CLIP": "#000000", "captions": "#d55e00", "noise before": "#0072b2", "noise after": "#56b4e9"}
FAMILIES |= {"augmented": "#009e73", "removed": "#cc79a7", "combined": "#e69f00"}
NAMED = {"label": "class label (supervised)", "caption": "caption (CLIP)", "view": "other view (self-supervised)"}


def by_layer(table: pd.DataFrame, ax: Axes, value: str) -> pd.DataFrame:
    """`value` by layer, a curve a paradigm (columns paradigm, layer, seed, `value`): means with 95 % intervals."""
    drawn = []
    for name, colour in PARADIGMS.items():
        chosen = table[table["paradigm"] == name].groupby(["layer", "seed"])[value].mean().unstack("seed")
        if chosen.empty:
            continue
        rows = pd.DataFrame([vars(stats.over_seeds(row, len(chosen))) for row in chosen.to_numpy()])
        rows = rows.assign(layer=chosen.index, paradigm=name)
        ax.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
        ax.plot(rows["layer"], rows["value"], color=colour, marker="o", label=NAMED[name])
        drawn.append(rows.drop(columns="n"))
    ax.set(xlabel="layer of the image tower", ylabel=value, xticks=sorted(table["layer"].unique()))
    return pd.concat(drawn, ignore_index=True)


def forest(
    rows: pd.DataFrame, ax: Axes, colours: Mapping[str, str] | None = None, by: str | None = None, zero: bool = True
) -> pd.DataFrame:
    """One line a row of `rows` (columns name, value, low, high): the value with its interval.

    With `by`, the rows of one name lie side by side, coloured by that column.
    """
    names = list(dict.fromkeys(rows["name"]))
    groups = list(dict.fromkeys(rows[by])) if by else [None]
    for place, group in enumerate(groups):
        part = rows if group is None else rows[rows[by] == group]
        shift = (place - (len(groups) - 1) / 2) * 0.22
        colour = (colours or {}).get(str(group), "#d55e00")
        spots = [names.index(name) + shift for name in part["name"]]
        points(ax, part, "value", spots, color=colour, marker="o", label=group)
    if zero:
        ax.axvline(0, color="black", linewidth=0.8, zorder=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    if by:
        legend_below(ax)
    return rows


def sweep_curve(rows: pd.DataFrame, ax: Axes, x: str, colour: str, label: str) -> None:
    """Values with intervals along `x` (columns `x`, value, low, high), joined by a line."""
    rows = rows.sort_values(x)
    ax.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    points(ax, rows, x, "value", color=colour, marker="o", label=label, linestyle="-")


def pareto(memorization: Sequence[float], utility: Sequence[float]) -> list[int]:
    """Places of the points that no other point beats in both: less memorization and more utility."""
    m, u = np.asarray(memorization, float), np.asarray(utility, float)
    beaten = [bool(((m <= a) & (u >= b) & ((m < a) | (u > b))).any()) for a, b in zip(m, u, strict=True)]
    front = [i for i, is_beaten in enumerate(beaten) if not is_beaten]
    return sorted(front, key=lambda i: m[i])


def frontier(rows: pd.DataFrame, ax: Axes, colours: Mapping[str, str]) -> pd.DataFrame:
    """Memorization against utility, a point a condition, with the Pareto front.

    Columns: name, family (a key of `colours`), and m, m_low, m_high, u, u_low, u_high.
    """
    for family, part in rows.groupby("family", sort=False):
        spans = {
            axis + "err": np.abs(part[[f"{c}_low", f"{c}_high"]].to_numpy().T - part[c].to_numpy())
            for axis, c in (("x", "m"), ("y", "u"))
        }
        colour = colours.get(str(family), NULL)
        ax.errorbar(part["m"], part["u"], **spans, linestyle="none", alpha=0.35, elinewidth=0.8, color=colour)
        ax.scatter(part["m"], part["u"], s=60, color=colour, edgecolor="white", zorder=4, label=family)
    front = rows.iloc[pareto(rows["m"], rows["u"])]
    ax.plot(front["m"], front["u"], color="black", linewidth=1, linestyle="--", zorder=1, label="Pareto front")
    for i, row in enumerate(front.itertuples()):  # the front rises: above to the left and below to the right are free
        beside, side = ((-6, 6), "right") if i % 2 else ((6, -12), "left")
        ax.annotate(str(row.name), (row.m, row.u), xytext=beside, textcoords="offset points", fontsize=9, ha=side)
    for limits, values in ((ax.set_xlim, rows["m"]), (ax.set_ylim, rows["u"])):
        margin = 0.35 * (values.max() - values.min()) or 0.1
        limits(values.min() - margin, values.max() + margin)  # the points decide; a wide interval leaves the picture
    legend_below(ax)
    return rows.assign(on_front=[name in set(front["name"]) for name in rows["name"]])
