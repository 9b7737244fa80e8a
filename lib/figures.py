"""The look of all figures, the plots that notebooks share, and the files of a figure.

A plot draws a tidy table on an axes and returns the table of what it drew. `scores`: rows of `tables.score_pairs`;
their external pairs, which no model was trained on, are the noise floor. Intervals: value, low and high."""

import hashlib
import textwrap
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import display
from matplotlib.pyplot import Axes, Figure

from lib import stats
from lib.store import write_bytes, write_json

# Okabe & Ito's colours, which people with any form of colour blindness tell apart: https://jfly.uni-koeln.de/color/
BLUE, SKY, GREEN, ORANGE, RED, PINK, NOISE = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#8c8c8c"
COLOURS = {"external": NOISE, "vagueness": GREEN}
COLOURS |= {"clean": SKY, "partly_swapped": ORANGE, "inverted": GREEN, "swapped": RED}
PARADIGMS = {"label": GREEN, "caption": RED, "view": BLUE}  # what an image is trained to agree with
MARKERS = {"label": "s", "caption": "o", "view": "^"}  # so that they can be told apart in grey
NAMED = {"label": "class label (supervised)", "caption": "caption (CLIP)", "view": "other view (self-supervised)"}
ENCODERS = {"both": "black", "text": RED, "image": BLUE}
MARKERS |= {"text": "s", "image": "^", "other captions": "D", "range-normalised": "D"}
NAMED |= {"both": "both encoders", "text": "text encoder alone", "image": "image encoder alone"}
FAMILIES = {"CLIP": "black", "captions": RED, "noise": BLUE, "augmented": GREEN, "epochs": NOISE, "removed": PINK}
NAMES = {"clipmem": "CLIPMem", "clipmem_plain": "CLIPMem, plain", "clipmem_consistency": "CLIPMem, as in MultiMem"}
NAMES |= {"similarity_in": "similarity", "loss_in": "loss", "early_loss_in": "early loss", "mean_loss_in": "mean loss"}
NAMES |= {"augmentation_in": "change under augmentation", "lemon_in": "LEMoN", "lemon_out": "held-out LEMoN"}
NAMES |= {"similarity_out": "held-out similarity", "loss_out": "held-out loss"}
LABELS = {"clipmem": "CLIPMem", "bits": "retrieval on unseen pairs (bits)", "r10": "R@10 on unseen pairs"}  # of axes


def theme() -> None:
    """Set the look of all figures, readable at a notebook's width and on a slide; let tables show whole sentences."""
    pd.set_option("display.max_colwidth", None, "display.html.use_mathjax", False)  # two dollars are no equation
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


def show(figure: Figure, description: str = "", name: str = "") -> None:
    """Show a figure in a notebook here, not at the end of the cell, described for those who cannot see it: by its title
    unless `description` is given. Under `name` it is saved among the results."""
    if get_ipython():
        alt = " ".join((description or figure.get_suptitle()).split())
        display(figure, metadata={"image/png": {"alt": alt, "figure": name}})
    plt.close(figure)


def wall(images, captions: Sequence[str], titles: Sequence[str], columns=6, colours=(), figure=None) -> Figure:
    """Show pictures uint8 `[N, 3, H, W]`, a title above and a caption below each, both literally: `$` is not TeX.

    `colours`: of a frame around each picture. `figure`: where to draw, such as a part of a figure; else a new one.
    """
    rows = -(-len(images) // columns)
    figure = figure or plt.figure(figsize=(2.1 * columns, 3.7 * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    plt.setp(axes, frame_on=False, xticks=[], yticks=[])
    frames = [*colours, *[None] * len(images)]
    for ax, image, caption, title, frame in zip(axes.flat, images, captions, titles, frames, strict=False):
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        if frame:
            ax.set_frame_on(True)
            plt.setp(ax.spines.values(), color=frame, linewidth=3, visible=True)
        ax.set_title(title, fontsize=11, loc="center", parse_math=False)
        lines = [textwrap.fill(line, 25, max_lines=5, placeholder=" …") for line in caption.splitlines()]
        ax.set_xlabel("\n".join(lines), fontsize=9.5, parse_math=False)
    return figure


def tell(figure: Figure, sentence: str, about: Mapping, bars: str = "95 % intervals over seeds and pairs") -> None:
    """Write above a figure what to see, and below it where it comes from and what the bars mean."""
    width = int(9.5 * figure.get_figwidth())  # characters of this size
    figure.suptitle(textwrap.fill(sentence, width), x=0.01, ha="left", fontsize=13, weight="bold")
    footer(figure, about, f" Bars: {bars}." * bool(bars))


def footer(figure: Figure, about: Mapping, more: str = "") -> None:
    """Write below a figure whose numbers these are (`study.about`)."""
    source = f"{about['name']}, scale {about['scale']}, {about['seeds']} seeds, {about['precision']}.{more}"
    figure.supxlabel(source, x=0.01, ha="left", fontsize=9, color="#595959")


def points(ax: Axes, rows: pd.DataFrame, x: str, y: Sequence[float] | str, **style) -> None:
    """Draw values with their intervals: along the x axis when `x` is "value", along the y axis when `y` is."""
    style = {"ms": 7, "mec": "white", "capsize": 3, "zorder": 4, "linestyle": "none", **style}
    style["xerr" if x == "value" else "yerr"] = rows["value"] - rows["low"], rows["high"] - rows["value"]
    ax.errorbar(rows[x], rows[y] if isinstance(y, str) else y, **style)


def legend_below(ax: Axes, columns: int = 3) -> None:
    """Put the legend under the axes' labels, where it cannot lie on the data."""
    handles, labels = ax.get_legend_handles_labels()
    place: dict = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 3.8}  # pad: times the font size
    ax.legend(handles, [label.replace("_", " ") for label in labels], ncols=columns, **place)


def sweep_curve(rows: pd.DataFrame, ax: Axes, x: str, colour: str, label: str, marker: str = "o") -> None:
    """Draw values along `x`, joined by a line, with their intervals."""
    rows = rows.sort_values(x)
    ax.fill_between(rows[x], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    points(ax, rows, x, "value", color=colour, marker=marker, label=label, linestyle="-")


def paths(table: pd.DataFrame, ax: Axes, x: str, y: str) -> None:
    """Draw `y` against `x` along training, a curve per `encoder`: every seed thin, the mean of all seeds thick."""
    for name, part in table.groupby("encoder", sort=False):
        look: dict = {"color": ENCODERS[name]}
        for _, one in part.groupby("seed"):
            ax.plot(one[x], one[y], linewidth=0.7, alpha=0.6, **look)
        mean = part.groupby("epoch")[["loss", y]].mean().reset_index()
        ax.plot(mean[x], mean[y], linewidth=2.2, marker=MARKERS.get(name, "o"), label=NAMED[name], **look)


def by_group(scores: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw a hill of CLIPMem per kind of corruption in the pool, with means and intervals; a grey hill below each shows
    the noise floor of the same kind, a tick its mean. Return the rows of the pool."""
    pool, floor = (scores[scores["subset"] == name] for name in ("pool", "external"))
    names = [name for name in COLOURS if (pool["corruption"] == name).any()]
    hill: dict = {"side": "low", "widths": 1.3, "facecolor": [(COLOURS[name], 0.75) for name in names]}  # y points down
    grey: dict = {"side": "high", "widths": 0.5, "facecolor": (NOISE, 0.75)}
    for rows, style in ((pool, hill), (floor, grey)):
        values = [rows.loc[rows["corruption"] == name, "clipmem"] for name in names]
        if all(len(part) > 1 for part in values):
            ax.violinplot(values, range(len(names)), orientation="horizontal", showextrema=False, **style)
            if rows is floor:
                ax.plot([part.mean() for part in values], np.arange(len(names)) + 0.12, "|", color="black", ms=9)
    plt.setp(ax.collections, linewidth=0)
    means = stats.means(pool, "corruption").set_index("corruption").loc[names].reset_index()
    labels = means["corruption"].str.replace("_", " ") + "\n" + means["n"].astype(str) + " pairs"
    forest(means.assign(name=labels), ax, {"": "black"})
    ax.set(xlabel=LABELS["clipmem"], ylim=(len(names) - 0.45, -0.8))
    return pool


def detection(scores: pd.DataFrame, ax: Axes, signs: Mapping[str, int]) -> pd.DataFrame:
    """Draw how well each score finds swapped captions among clean ones, the best first; `signs` as for `stats.gain`."""
    found = [{"name": NAMES[name], **vars(stats.detect(scores, name, sign))} for name, sign in signs.items()]
    ax.axvline(0.5, color="black", linestyle="--", linewidth=1.3, label="chance")
    ax.set_xlabel("finding swapped captions (ROC AUC)")
    return forest(pd.DataFrame(found).sort_values("value", ascending=False), ax, {"": "black"}, zero=False)


def response(scores: pd.DataFrame, ax: Axes, x: str, colour: str, bins: Sequence[float] = ()) -> pd.DataFrame:
    """Draw mean CLIPMem at each value of `x`, or in `bins` of it at their mean, with intervals."""
    if len(bins):
        middles = scores.groupby(pd.cut(scores[x], bins, include_lowest=True), observed=True)[x].transform("mean")
        scores = scores.assign(**{x: middles.round(6)})
    drawn = stats.means(scores, x).sort_values(x)
    sweep_curve(drawn, ax, x, colour, LABELS["clipmem"])
    ax.set(xlabel=x.replace("_", " "), ylabel=f"mean {LABELS['clipmem']}")
    return drawn


def along_training(table: pd.DataFrame, ax: Axes, value="clipmem", by: str | None = "corruption") -> pd.DataFrame:
    """Draw `value` by epoch (columns epoch, seed, `value`, `by`): mean over seeds, shaded from least to greatest."""
    look = {"palette": COLOURS, "hue": by, "style": by, "markers": True, "dashes": False}
    look = look if by else {"color": "black", "marker": "o"}
    sns.lineplot(table, x="epoch", y=value, ax=ax, errorbar=("pi", 100), **look)
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
        sweep_curve(part, ax, "layer", PARADIGMS[name], NAMED[name], MARKERS[name])
    ax.set(xlabel="layer of the image tower", ylabel=value, xticks=sorted(drawn["layer"].unique()))
    return drawn


def forest(rows: pd.DataFrame, ax: Axes, colours: Mapping | None = None, by=None, zero=True) -> pd.DataFrame:
    """Draw a line per `name`: its value with interval, and side by side, in colours, one for each value of `by`."""
    names = list(dict.fromkeys(rows["name"]))
    parts = list(rows.groupby(by, sort=False)) if by else [("", rows)]
    for place, (group, part) in enumerate(parts):
        shift = (place - (len(parts) - 1) / 2) * 0.22  # three then fill two thirds of the space of a name
        y = [names.index(name) + shift for name in part["name"]]
        look = {"color": (colours or {}).get(group, RED), "marker": MARKERS.get(group, "o")}
        points(ax, part, "value", y, label=NAMED.get(group, group), **look)
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    if zero:
        ax.axvline(0, color="black", linewidth=0.8, zorder=1)
    if by:
        legend_below(ax)
    return rows


def gains(rows: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw differences as `forest` does; a grey bar spans those that are too small to be found (`detectable`)."""
    reach = rows["detectable"].where(np.isfinite(rows["detectable"]), 0.0)
    ax.barh(range(len(rows)), 2 * reach, left=-reach, height=0.75, color="#e3e3e3", zorder=0)
    return forest(rows, ax, {"": "black"})


def frontier(rows: pd.DataFrame, ax: Axes, colours: Mapping[str, str]) -> pd.DataFrame:
    """Draw m (memorization) and u (utility) with their limits (m_low, …), named, and coloured by `family`."""
    for family, part in rows.groupby("family", sort=False):
        colour = colours.get(str(family), NOISE)
        across, up = ((part[axis] - part[f"{axis}_low"], part[f"{axis}_high"] - part[axis]) for axis in "mu")
        ax.errorbar(part["m"], part["u"], up, across, fmt="o", ms=8, mec="white", color=colour, elinewidth=1, zorder=4)
    for name, m, u in rows[["name", "m", "u"]].to_numpy():  # the rightmost below: its neighbour is close
        ax.annotate(name, (m, u), (7, -13 if m == rows["m"].max() else 5), textcoords="offset points", fontsize=10)
    ax.dataLim.update_from_data_xy(rows[["m", "u"]].to_numpy(float), ignore=True)
    ax.margins(0.3)
    return rows
