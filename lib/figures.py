"""One look for every figure: fixed colours, intervals and nulls on the same axes, and files that say what made them.

Plot functions take a tidy table and an axes, draw, and return the table of what they drew, ready for `save`.
`scores` below is the per-pair table: seed, pair_id, subset, kind, dose, vagueness, rarity, clipmem, null (left out of
the picture where it is unknown, as with a single seed).
"""

import hashlib
import json
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from lib import stats
from lib.recipes import slug
from lib.store import PROJECT as ROOT
from lib.store import write_bytes

SUBSETS = ("shared", "candidate", "independent", "external")
# Okabe & Ito's colours, which people with any form of colour blindness tell apart: https://jfly.uni-koeln.de/color/
COLOURS = {"shared": "#0072b2", "candidate": "#d55e00", "independent": "#009e73", "external": "#cc79a7"}
COLOURS |= {
    "clean": "#56b4e9",
    "dosed": "#e69f00",
    "odd": "#009e73",
    "wrong": "#d55e00",
    "vagueness": "#009e73",
    "rarity": "#cc79a7",
}
NULL = "#8c8c8c"
NAMES = {"clipmem": "CLIPMem", "clipmem_plain": "CLIPMem, plain", "null": "null: another seed"}
NAMES |= {"similarity_f": "f's similarity", "similarity_g": "g's similarity", "loss_f": "f's loss"}
NAMES |= {"image_to_text_r10": "R@10 on unseen pairs"}
VERSIONS = ("torch", "open_clip_torch", "numpy", "pandas", "scipy", "matplotlib", "seaborn")
SCORE = "CLIPMem (raw)"


def theme() -> None:
    """The style of all figures, readable at a notebook's width and on a slide; tables show whole sentences."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(context="notebook", style="whitegrid", palette=list(COLOURS.values())[:6])
    plt.rcParams.update({"figure.figsize": (7.5, 4.2), "figure.constrained_layout.use": True})
    plt.rcParams.update({"axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"legend.frameon": False, "legend.fontsize": 11, "pdf.fonttype": 42, "grid.color": "#e6e6e6"})


def commit(root: Path = ROOT) -> str:
    """Short hash of the project's commit, with '+' when lib or notebooks differ from it; 'unknown' outside git."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        paths = ["--", "lib", "notebooks"]
        dirty = subprocess.run([*git, "status", "--porcelain", *paths], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def provenance(notebook: str, dataset: str, scale: str, seeds: int, run_keys: Sequence[str]) -> dict:
    """What stands behind a figure: its notebook, data, trained runs, commit and library versions."""
    made_by = {"notebook": notebook, "dataset": slug(dataset), "scale": scale, "seeds": seeds}
    versions = dict.fromkeys(VERSIONS, "not installed")
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {**made_by, "run_keys": sorted(run_keys), "commit": commit(), "versions": versions}


def shows_data(figure: Figure, table: pd.DataFrame) -> bool:
    """Whether a figure shows pictures, or its table holds captions (numbers under that name are scores)."""
    texts = "caption" in table and not pd.api.types.is_numeric_dtype(table["caption"])
    return texts or any(axes.images for axes in figure.axes)


def save(figure: Figure, name: str, table: pd.DataFrame, folder: Path, provenance: Mapping) -> list[str]:
    """Write `folder/name` as .png (150 dpi), .pdf, .csv (`table`) and .json (`provenance` and the CSV's SHA-256).

    Same figure, same bytes. Returns the four paths, relative to the project where they lie in it. ValueError when a
    data set other than the drawn scenes would leave its pictures or captions in a folder that is committed.
    """
    if shows_data(figure, table) and provenance.get("dataset") != "scenes":
        raise ValueError(f"figure {name} holds pictures or captions of {provenance.get('dataset')}: only show it")
    csv = table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    facts = {**provenance, "figure": name, "rows": len(table), "csv_sha256": hashlib.sha256(csv).hexdigest()}
    files = {"csv": csv, "json": (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()}
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        buffer = BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        files[kind] = buffer.getvalue()
    paths = [Path(folder).resolve() / f"{name}.{kind}" for kind in ("png", "pdf", "csv", "json")]
    for path in paths:
        write_bytes(path, files[path.suffix[1:]])
    return [str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in paths]


def _known(scores: pd.DataFrame, column: str) -> bool:
    return column in scores and bool(scores[column].notna().any())


def _hill(ax: Axes, values: pd.Series, base: float, height: float, colour: str) -> None:
    """A smoothed histogram that stands on `base`, or hangs from it when `height` is negative."""
    if values.std() > 0:
        x = np.linspace(values.quantile(0.001), values.quantile(0.999), 200)
        density = gaussian_kde(values)(x)
        ax.fill_between(x, base, base + height * density / density.max(), color=colour, alpha=0.75, linewidth=0)


def _hills(scores: pd.DataFrame, ax: Axes, by: str, order: Sequence[str], hanging: bool) -> pd.DataFrame:
    """One hill of CLIPMem a value of `by`, its mean with interval on its foot, and the null hanging below."""
    drawn, names = [], [name for name in order if (scores[by] == name).any()]
    for place, name in enumerate(names):
        part = scores[scores[by] == name]
        for column in ("clipmem", "null") if hanging and _known(part, "null") else ("clipmem",):
            up = column == "clipmem"
            _hill(ax, part[column], -place, 0.65 if up else -0.2, COLOURS[name] if up else NULL)
            drawn.append({by: name, "score": NAMES[column], **vars(stats.mean(part, column))})
            if up:
                points(ax, pd.DataFrame(drawn[-1:]), "value", [-place], color="black", marker="o", ms=6)
    pairs = scores.groupby(by)["pair_id"].nunique()
    ax.set_yticks([-i for i in range(len(names))], [f"{name}\n{pairs[name]} pairs" for name in names])
    ax.set(xlabel=SCORE, ylim=(-len(names) + 0.65, 0.8))
    ax.axvline(0, color="black", linewidth=0.8, zorder=1)
    ax.grid(axis="y", visible=False)
    return pd.DataFrame(drawn)


def points(ax: Axes, rows: pd.DataFrame, x: str, y: Sequence[float] | str, **style) -> None:
    """Values with their intervals: along the x axis when `x` is "value", along the y axis when `y` is."""
    spans = np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]])
    look: dict[str, Any] = {"ms": 7, "mec": "white", "capsize": 3, "zorder": 4, "linestyle": "none", **style}
    look["xerr" if x == "value" else "yerr"] = spans
    ax.errorbar(rows[x], rows[y] if isinstance(y, str) else y, **look)


def legend_below(ax: Axes, columns: int = 3) -> None:
    """Under the axes, where no legend can lie on the data."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)


def distributions(scores: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """CLIPMem over the four subsets; grey and hanging: the null of the same pairs; dots: means with 95 % intervals."""
    drawn = _hills(scores, ax, "subset", SUBSETS, hanging=True)
    ax.set_title("CLIPMem by subset" + "; below each, in grey, the null" * _known(scores, "null"))
    return drawn


def by_kind(scores: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """CLIPMem of clean, dosed, odd and wrong candidates, the mean of each with its interval, and the null's range.

    Returns the per-pair rows, from which the difference, ROC AUC and average precision can be computed again."""
    chosen = scores[scores["subset"] == "candidate"]
    _hills(chosen, ax, "kind", ("clean", "dosed", "odd", "wrong"), hanging=False)
    if _known(chosen, "null"):
        low, high = stats.null_range(chosen)
        ax.axvspan(low, high, color=NULL, alpha=0.25, linewidth=0, zorder=0, label="null, 95 % of pairs")
        legend_below(ax)
    return chosen[[c for c in chosen if c not in ("caption", "subset")]]


def detection(rows: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Rows of `stats.detection`: how well each score finds wrong captions, beside what chance would give."""
    names = list(dict.fromkeys(rows["score"]))
    looks = {"ROC AUC": ("o", "black", -0.12, "--"), "average precision": ("s", COLOURS["shared"], 0.12, ":")}
    for metric, (marker, colour, shift, line) in looks.items():
        part = rows[rows["metric"] == metric]
        places = [names.index(score) + shift for score in part["score"]]
        points(ax, part, "value", places, color=colour, marker=marker, label=metric)
        ax.axvline(part["chance"].iloc[0], color=colour, linestyle=line, linewidth=1.3, label=f"chance, {metric}")
    ax.set_yticks(range(len(names)), [NAMES.get(name, name) for name in names])
    ax.set(xlim=(0, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel="finding wrong among clean captions")
    legend_below(ax, 2)
    return rows


def _lines(scores: pd.DataFrame, ax: Axes, x: str, colour: str) -> pd.DataFrame:
    """Mean CLIPMem at each value of `x` with its interval, and the null's mean with its own, on the same axes."""
    drawn = []
    shades = {"null": NULL, "clipmem": colour} if _known(scores, "null") else {"clipmem": colour}
    for column, shade in shades.items():
        rows = stats.means(scores, x, column)
        ax.fill_between(rows[x], rows["low"], rows["high"], color=shade, alpha=0.2, linewidth=0)
        points(ax, rows, x, "value", color=shade, marker="o", label=NAMES[column], linestyle="-")
        drawn.append(rows.assign(score=NAMES[column]))
    ax.axhline(0, color="black", linewidth=0.8, zorder=1)
    return pd.concat(drawn, ignore_index=True)


def dose_response(scores: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Mean CLIPMem of the candidates by the share of their caption that was replaced; thin lines: single seeds."""
    chosen = scores[(scores["subset"] == "candidate") & (scores["kind"] != "odd")]
    each = chosen.groupby(["seed", "dose"])["clipmem"].mean().unstack("seed")
    ax.plot(each, color=COLOURS["dosed"], linewidth=1, alpha=0.6, zorder=2)
    drawn = _lines(chosen, ax, "dose", COLOURS["wrong"])
    ax.set(xlabel="share of the caption replaced", ylabel=f"mean {SCORE}", xticks=sorted(chosen["dose"].unique()))
    legend_below(ax)
    return drawn


def vague_rare(scores: pd.DataFrame, ax: Axes, column: str, bins: int = 5) -> pd.DataFrame:
    """Mean CLIPMem of clean candidates in equally filled bins of `column`: "vagueness" or "rarity" (ground truth)."""
    chosen = scores[(scores["subset"] == "candidate") & (scores["kind"] == "clean")].dropna(subset=[column])
    if chosen.empty:
        raise ValueError(f"no pair has a known {column}: only data sets with ground truth, such as scenes, can show it")
    place = pd.qcut(chosen[column], bins, duplicates="drop", labels=False)
    middles = chosen.groupby(place)[column].transform("mean").round(6)
    drawn = _lines(chosen.assign(**{column: middles}), ax, column, COLOURS[column])
    ax.set(xlabel=f"{column} (0 least, 1 most)", ylabel=f"mean {SCORE}")
    ax.label_outer()
    legend_below(ax)
    return drawn


def along_training(table: pd.DataFrame, ax: Axes, value: str = "clipmem", by: str | None = "kind") -> pd.DataFrame:
    """`value` against `epoch` (columns epoch, seed, `value`, `by`): mean over seeds, shaded from least to greatest."""
    for name, part in table.groupby(by) if by else [(None, table)]:
        colour = COLOURS.get(str(name), "black")
        sns.lineplot(part, x="epoch", y=value, color=colour, label=name, ax=ax, errorbar=("pi", 100), marker="o")
    ax.set(ylabel=SCORE if value == "clipmem" else NAMES.get(value, value), xticks=sorted(table["epoch"].unique()))
    if by:
        legend_below(ax, 4)
    return table[["seed", "epoch", *([by] if by else []), value]]


def wall(images: np.ndarray, captions: Sequence[str], titles: Sequence[str], columns: int = 6) -> Figure:
    """Pictures uint8 `[N, 3, H, W]`, each with a title above (its score) and its caption, wrapped, below."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 3.3 * rows), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, caption, title in zip(axes.flat, images, captions, titles, strict=False):
        ax.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        ax.set_title(title, fontsize=11, loc="center")
        text = "\n".join(textwrap.wrap(caption, 25, max_lines=5, placeholder=" …"))
        ax.text(0.5, -0.04, text, transform=ax.transAxes, ha="center", va="top", fontsize=9)
    figure.set_layout_engine("constrained", h_pad=0.34)  # room for captions, which the layout does not see
    return figure
