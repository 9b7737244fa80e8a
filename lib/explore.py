"""See pairs along CLIPMem: a static picture and, where somebody can move it, a slider with a filter."""

from importlib.util import find_spec

import pandas as pd
from IPython import get_ipython
from matplotlib.pyplot import Figure

from lib import figures
from lib.data import Prepared, load

ALL = "all kinds"


def with_captions(each: pd.DataFrame, prepared: Prepared) -> pd.DataFrame:
    """Add to a table of pairs (column pair_id) their row and their caption as trained, with the right one below it
    where it was changed."""
    table, originals = prepared.table.reset_index()[["row", "pair_id", "caption"]], load(prepared.data).captions
    right = table["row"].map(lambda row: originals[row][0])
    both = table["caption"] + "\n(right: " + right + ")"
    return each.merge(table.assign(caption=both.where(right != table["caption"], table["caption"])), on="pair_id")


def around(pairs: pd.DataFrame, percentile: float, corruption: str = ALL, count: int = 6) -> pd.DataFrame:
    """Return the `count` pairs around a percentile (0 to 100) of CLIPMem among those of a kind of corruption, the least
    memorized first: fewer where the kind has fewer, none where it has none."""
    kind = pairs[(pairs["corruption"] == corruption) | (corruption == ALL)]
    first = round(percentile / 100 * (len(kind) - 1) - (count - 1) / 2)  # so that the percentile lies in the middle
    return kind.sort_values(["clipmem", "pair_id"])[max(0, min(first, len(kind) - count)) :][:count]


def picture(pairs: pd.DataFrame, prepared: Prepared, sentence: str) -> Figure:
    """Draw pairs of `with_captions` under a sentence: score ± standard error, corruption, captions, all literally."""
    titles = [f"CLIPMem {x.clipmem:+.2f} ± {x.error:.2f}\n{x.corruption}" for x in pairs.itertuples()]
    titles = [title.replace("_", " ").replace(" ± nan", "") for title in titles]  # nan: one seed has no error
    figure = figures.wall(prepared.images[pairs["row"]], pairs["caption"].tolist(), titles)
    figure.set_figheight(5.2)  # always the same, so that nothing jumps when the slider moves
    for ax in figure.axes:
        ax.set_anchor("N")
    figure.suptitle(sentence, x=0.01, ha="left", fontsize=13, weight="bold")
    return figure


def attended() -> bool:
    """Return whether somebody can move a slider: there is ipywidgets, and a front-end that would also answer a call of
    input(), as neither papermill nor nbconvert would."""
    kernel = getattr(get_ipython(), "kernel", None)
    return bool(find_spec("ipywidgets") and kernel and kernel.get_parent().get("content", {}).get("allow_stdin"))


def explore(each: pd.DataFrame, prepared: Prepared) -> None:
    """Show a few pairs of `reliability.per_pair` along CLIPMem and, where `attended`, a slider to see all others."""
    pairs = with_captions(each, prepared)
    few = pd.concat([around(pairs, place, count=2) for place in (5, 50, 95)])
    figures.show(picture(few, prepared, "Two pairs each around the 5th, 50th and 95th percentile of CLIPMem"))
    if attended():
        from ipywidgets import IntSlider, interact

        def draw(percentile: int, corruption: str) -> None:
            told = f"Around percentile {percentile} of CLIPMem, {corruption.replace('_', ' ')}"
            figures.show(picture(around(pairs, percentile, corruption), prepared, told))

        slider = IntSlider(75, continuous_update=False, layout={"width": "80%"})  # one picture per move, not per pixel
        kinds = [name for name in (ALL, *figures.COLOURS) if name in {ALL, *pairs["corruption"]}]
        interact(draw, percentile=slider, corruption=[(name.replace("_", " "), name) for name in kinds])
