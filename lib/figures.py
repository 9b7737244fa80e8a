"""The look of all figures, the plots that notebooks share, and the files of a figure.

A plot draws a tidy table on an axes and returns the table of what it drew. `scores`: seed, pair_id, subset, corruption,
share_swapped, vagueness, rarity, clipmem, and noise_floor, which may be missing. Intervals: value, low and high."""

import hashlib
import textwrap
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.pyplot import Axes, Figure

from lib import stats
from lib.store import write_bytes, write_json

# Okabe & Ito's colours, which people with any form of colour blindness tell apart: https://jfly.uni-koeln.de/color/
BLUE, SKY, GREEN, ORANGE, RED, PINK, NOISE = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#8c8c8c"
COLOURS = {"shared": BLUE, "candidate": RED, "independent": GREEN, "external": PINK, "vagueness": GREEN, "rarity": PINK}
COLOURS |= {"clean": SKY, "partly_swapped": ORANGE, "inverted": GREEN, "swapped": RED}
PARADIGMS = {"label": GREEN, "caption": RED, "view": BLUE}  # what an image is trained to agree with
NAMED = {"label": "class label (supervised)", "caption": "caption (CLIP)", "view": "other view (self-supervised)"}
ENCODERS = {"image": BLUE, "text": RED}
FAMILIES = {"CLIP": "black", "captions": RED, "noise before": BLUE, "noise after": SKY}
FAMILIES |= {"augmented": GREEN, "removed": PINK, "combined": ORANGE}
NAMES = {"clipmem": "CLIPMem", "clipmem_plain": "CLIPMem, plain", "noise_floor": "noise floor: another seed"}
NAMES |= {"similarity_f": "f's similarity", "similarity_g": "g's similarity", "loss_f": "f's loss"}
LABELS = {"clipmem": "CLIPMem (raw)", "image_to_text_r10": "R@10 on unseen pairs"}  # of axes


def theme() -> None:
    """Set the look of all figures, readable at a notebook's width and on a slide; let tables show whole sentences."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(context="notebook", style="whitegrid", palette=[BLUE, RED, GREEN, PINK, SKY, ORANGE])
    plt.rcParams.update({"figure.figsize": (7.5, 4.2), "figure.constrained_layout.use": True})
    plt.rcParams.update({"axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"legend.frameon": False, "legend.fontsize": 11, "pdf.fonttype": 42, "grid.color": "#e6e6e6"})


def shows_data(figure: Figure, table: pd.DataFrame, captions: Collection[str]) -> bool:
    """Return whether a figure shows pictures, or a cell of its table is a caption (case and white space aside)."""
    texts = table.select_dtypes(exclude=["number", "bool"]).to_numpy().ravel()
    shown = {" ".join(str(text).split()).casefold() for text in texts}
    known = {" ".join(caption.split()).casefold() for caption in captions}
    return bool(shown & known) or any(axes.images for axes in figure.axes)


def watermark(figure: Figure) -> None:
    """Write "SMOKE: machinery only" along the diagonal of a figure, so that it cannot be taken for a result."""
    width, height = figure.get_size_inches()
    text = figure.text(0.5, 0.5, "SMOKE: machinery only", ha="center", va="center", color=RED, alpha=0.35, zorder=10)
    angle, size = np.degrees(np.arctan2(height, width)), 4.5 * np.hypot(width, height)  # fills 3/4 of the diagonal
    text.set(rotation=angle, fontsize=size, weight="bold")


def save(figure: Figure, name: str, table: pd.DataFrame, folder: Path, about: Mapping) -> list[Path]:
    """Write `folder/name`: .png (150 dpi), .pdf, .csv, .json (`about`, the CSV's SHA-256). Same figure, same bytes."""
    png, pdf, csv, json = (Path(folder) / f"{name}.{kind}" for kind in ("png", "pdf", "csv", "json"))
    for path, metadata in ((png, {"Software": None}), (pdf, {"CreationDate": None})):
        figure.savefig(buffer := BytesIO(), format=path.suffix[1:], dpi=150, metadata=metadata)
        write_bytes(path, buffer.getvalue())
    write_bytes(csv, cells := table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    write_json(json, {**about, "figure": name, "rows": len(table), "csv_sha256": hashlib.sha256(cells).hexdigest()})
    return [png, pdf, csv, json]


def wall(images: np.ndarray, captions: Sequence[str], titles: Sequence[str], columns: int = 6) -> Figure:
    """Show pictures uint8 `[N, 3, H, W]`, a title above and a caption below each, both literally: `$` is not TeX."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 3.3 * rows), squeeze=False)
    plt.setp(axes, frame_on=False, xticks=[], yticks=[])
    for ax, image, caption, title in zip(axes.flat, images, captions, titles, strict=False):
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        ax.set_title(title, fontsize=11, loc="center", parse_math=False)
        text = "\n".join(textwrap.wrap(caption, 25, max_lines=5, placeholder=" …"))
        ax.text(0.5, -0.04, text, transform=ax.transAxes, ha="center", va="top", fontsize=9, parse_math=False)
    figure.set_layout_engine("constrained", h_pad=0.34)  # room for captions, which the layout does not see
    return figure


def points(ax: Axes, rows: pd.DataFrame, x: str, y: Sequence[float] | str, **style) -> None:
    """Draw values with their intervals: along the x axis when `x` is "value", along the y axis when `y` is."""
    style = {"ms": 7, "mec": "white", "capsize": 3, "zorder": 4, "linestyle": "none", **style}
    style["xerr" if x == "value" else "yerr"] = rows["value"] - rows["low"], rows["high"] - rows["value"]
    ax.errorbar(rows[x], rows[y] if isinstance(y, str) else y, **style)


def legend_below(ax: Axes, columns: int = 3) -> None:
    """Put the legend under the axes' labels, where it cannot lie on the data."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3.8, ncols=columns)  # pad: times the font size


def sweep_curve(rows: pd.DataFrame, ax: Axes, x: str, colour: str, label: str) -> None:
    """Draw values along `x`, joined by a line, with their intervals."""
    rows = rows.sort_values(x)
    ax.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    points(ax, rows, x, "value", color=colour, marker="o", label=label, linestyle="-")


def _hills(scores: pd.DataFrame, ax: Axes, by: str) -> pd.DataFrame:
    """Draw a hill of CLIPMem per value of `by` with its mean and interval; the noise floor hangs below it in grey."""
    names = [name for name in COLOURS if (scores[by] == name).any()]
    hill: dict = {"side": "low", "widths": 1.3, "facecolor": [(COLOURS[name], 0.75) for name in names]}  # y points down
    grey: dict = {"side": "high", "widths": 0.4, "facecolor": (NOISE, 0.75)}
    drawn = []
    for column, style in (("clipmem", hill), ("noise_floor", grey)):
        if column in scores:
            values = [scores.loc[scores[by] == name, column] for name in names]
            ax.violinplot(values, range(len(names)), orientation="horizontal", showextrema=False, **style)
            means = stats.means(scores, by, column).set_index(by).loc[names].reset_index()
            drawn.append(means.assign(score=NAMES[column]))
    plt.setp(ax.collections, linewidth=0)
    forest(drawn[0].assign(name=drawn[0][by] + "\n" + drawn[0]["n"].astype(str) + " pairs"), ax, {"": "black"})
    ax.set(xlabel=LABELS["clipmem"], ylim=(len(names) - 0.65, -0.8))
    return pd.concat(drawn, ignore_index=True)


def distributions(scores: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw CLIPMem of four subsets, the noise floor of the same pairs in grey below, and means with their intervals."""
    ax.set_title("CLIPMem by subset" + "; below each, in grey, the noise floor" * ("noise_floor" in scores))
    return _hills(scores, ax, "subset")


def by_corruption(scores: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw CLIPMem of the candidates by corruption, and the range of the noise floor; return the candidates' rows."""
    chosen = scores[scores["subset"] == "candidate"].drop(columns=["subset", "caption"], errors="ignore")
    _hills(chosen.drop(columns="noise_floor", errors="ignore"), ax, "corruption")
    if "noise_floor" in chosen:
        ax.axvspan(*stats.noise_range(chosen), color=NOISE, alpha=0.25, lw=0, zorder=0, label="95 % of the noise floor")
        legend_below(ax)
    return chosen


def detection(scores: pd.DataFrame, ax: Axes, signs: Mapping[str, int]) -> pd.DataFrame:
    """Draw how well each score of the candidates finds swapped captions; `signs` as for `stats.gain`."""
    found = [{"name": NAMES.get(name, name), **vars(stats.detect(scores, name, sign))} for name, sign in signs.items()]
    ax.axvline(0.5, color="black", linestyle="--", linewidth=1.3, label="chance")
    ax.set(xlim=(0, 1.02), xlabel="finding swapped among clean captions (ROC AUC)")
    drawn = forest(pd.DataFrame(found), ax, {"": "black"}, zero=False)
    legend_below(ax)
    return drawn


def _lines(scores: pd.DataFrame, ax: Axes, x: str, colour: str, xlabel: str) -> pd.DataFrame:
    """Draw mean CLIPMem, and the mean of the noise floor, at each value of `x`."""
    drawn = []
    for column, shade in (("noise_floor", NOISE), ("clipmem", colour)):
        if column in scores:
            drawn.append(stats.means(scores, x, column).assign(score=NAMES[column]))
            sweep_curve(drawn[-1], ax, x, shade, NAMES[column])
    ax.axhline(0, color="black", linewidth=0.8, zorder=1)
    ax.set(xlabel=xlabel, ylabel=f"mean {LABELS['clipmem']}")
    legend_below(ax)
    return pd.concat(drawn, ignore_index=True)


def swap_response(scores: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw mean CLIPMem of the candidates by the share of their caption that was swapped; thin lines: single seeds."""
    chosen = scores[(scores["subset"] == "candidate") & (scores["corruption"] != "inverted")]
    one_by_one = chosen.groupby(["seed", "share_swapped"])["clipmem"].mean().unstack("seed")
    ax.plot(one_by_one, color=COLOURS["partly_swapped"], linewidth=1, alpha=0.6, zorder=2)
    ax.set_xticks(one_by_one.index)
    return _lines(chosen, ax, "share_swapped", COLOURS["swapped"], "share of the caption swapped")


def graded(scores: pd.DataFrame, ax: Axes, column: str) -> pd.DataFrame:
    """Draw mean CLIPMem of clean candidates in five equally filled bins of `column`, "vagueness" or "rarity"."""
    chosen = scores[(scores["subset"] == "candidate") & (scores["corruption"] == "clean")].dropna(subset=[column])
    if chosen.empty:
        raise ValueError(f"no pair has a known {column}: only data sets with ground truth, such as scenes, can show it")
    bin_of = pd.qcut(chosen[column], 5, duplicates="drop")
    middles = chosen.groupby(bin_of)[column].transform("mean").round(6)
    drawn = _lines(chosen.assign(**{column: middles}), ax, column, COLOURS[column], f"{column} (0 least, 1 most)")
    ax.label_outer()
    return drawn


def along_training(table: pd.DataFrame, ax: Axes, value="clipmem", by: str | None = "corruption") -> pd.DataFrame:
    """Draw `value` by epoch (columns epoch, seed, `value`, `by`): mean over seeds, shaded from least to greatest."""
    look = {"palette": COLOURS, "hue": by} if by else {"color": "black"}
    sns.lineplot(table, x="epoch", y=value, ax=ax, errorbar=("pi", 100), marker="o", **look)
    ax.set(ylabel=LABELS.get(value, value), xticks=sorted(table["epoch"].unique()))
    if by:
        legend_below(ax, 4)
    return table[["seed", "epoch", *([by] if by else []), value]]


def by_layer(table: pd.DataFrame, ax: Axes, value: str) -> pd.DataFrame:
    """Draw `value` by layer with intervals over seeds, a curve per paradigm: columns paradigm, layer, seed, `value`."""
    rows = []
    for (name, layer), part in table.groupby(["paradigm", "layer"], sort=False):
        found = stats.over_seeds(part.groupby("seed")[value].mean(), len(part))
        rows.append({"paradigm": name, "layer": layer, **vars(found)})
    drawn = pd.DataFrame(rows).drop(columns="n")
    for name, part in drawn.groupby("paradigm", sort=False):
        sweep_curve(part, ax, "layer", PARADIGMS[name], NAMED[name])
    ax.set(xlabel="layer of the image tower", ylabel=value, xticks=sorted(drawn["layer"].unique()))
    return drawn


def forest(rows: pd.DataFrame, ax: Axes, colours: Mapping | None = None, by=None, zero=True) -> pd.DataFrame:
    """Draw a line per `name`: its value with interval, and side by side, in colours, one for each value of `by`."""
    names = list(dict.fromkeys(rows["name"]))
    parts = list(rows.groupby(by, sort=False)) if by else [("", rows)]
    for place, (group, part) in enumerate(parts):
        shift = (place - (len(parts) - 1) / 2) * 0.22  # three then fill two thirds of the space of a name
        y = [names.index(name) + shift for name in part["name"]]
        points(ax, part, "value", y, color=(colours or {}).get(group, RED), marker="o", label=NAMED.get(group, group))
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    if zero:
        ax.axvline(0, color="black", linewidth=0.8, zorder=1)
    if by:
        legend_below(ax)
    return rows


def pareto(memorization: Sequence[float], utility: Sequence[float]) -> list[int]:
    """Return the places of the points that no other beats in both: less memorization and more utility."""
    m, u = np.asarray(memorization, float), np.asarray(utility, float)
    beaten = [((m < a) & (u >= b) | (m <= a) & (u > b)).any() for a, b in zip(m, u, strict=True)]
    return [int(place) for place in np.argsort(m, kind="stable") if not beaten[place]]


def frontier(rows: pd.DataFrame, ax: Axes, colours: Mapping[str, str]) -> pd.DataFrame:
    """Draw m (memorization) and u (utility) with limits (m_low, …), coloured by `family`, and the Pareto front."""
    for family, part in rows.groupby("family", sort=False):
        colour = colours.get(str(family), NOISE)
        m_span, u_span = (np.abs(part[[f"{axis}_low", f"{axis}_high"]].T - part[axis]) for axis in "mu")
        ax.errorbar(part["m"], part["u"], u_span, m_span, fmt="none", alpha=0.35, elinewidth=0.8, color=colour)
        ax.scatter(part["m"], part["u"], s=60, color=colour, edgecolor="white", zorder=4, label=family)
    front = rows.iloc[pareto(rows["m"], rows["u"])]
    ax.plot(front["m"], front["u"], color="black", linewidth=1, linestyle="--", zorder=1, label="Pareto front")
    for i, row in enumerate(front.itertuples()):  # the front rises: above to the left and below to the right are free
        beside, side = ((-6, 6), "right") if i % 2 else ((6, -12), "left")
        ax.annotate(str(row.name), (row.m, row.u), xytext=beside, textcoords="offset points", fontsize=9, ha=side)
    ax.dataLim.update_from_data_xy(rows[["m", "u"]].to_numpy(float), ignore=True)
    ax.margins(0.35)  # around the points, which alone decide: a wide interval leaves the picture
    legend_below(ax)
    return rows.assign(on_front=[name in set(front["name"]) for name in rows["name"]])
