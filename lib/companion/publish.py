"""The reference in figures/: copied from a run, and the pages that show it.

python -m lib.companion.publish     write the pages from what is published: figures/README.md and one per data set
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from nbconvert import MarkdownExporter

from lib import store
from lib.companion import findings
from lib.photos import PRESETS
from lib.stats import holm

MIN_SEEDS = 3  # the fewest that are published: the paper's own number
ENDINGS = (".png", ".pdf", ".csv", ".json")  # the files of a figure
OWN_MODELS = "05_your_own_models"  # shows models that others have, and is not published
WIDTH = 15  # characters of an interval bar
SIGNS = {"reproduced": "●", "supported": "●", "contradicted": "○", "not supported": "○", "inconclusive": "◐"}
CHANGES = {  # of the text of an executed notebook
    r"<style.*?</style>\s*": "",  # GitHub would show the style of a table
    r"[^\n]*\r[^\n]*\n": "",  # the states of progress bars
    r"\]\(\.\./": "](../../../",  # links, which lead from notebooks/
    rf"\]\(({OWN_MODELS}\.ipynb)\)": r"](../../../notebooks/\1)",
    r"\]\((\d\w+)\.ipynb\)": r"](../../scenes-laptop/executed/\1.md)",
    r"\n{3,}": "\n\n",
}


def title(notebook: Path) -> str:
    """Return the title of a notebook, the first line of its first cell."""
    return nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")


def refusal(scale: str, seeds: int, commit: str) -> str:
    """Return why results may not become the reference, or "" where they may."""
    if scale == "smoke":
        return "smoke decides nothing, so it is not published: use laptop or a larger scale."
    if seeds < MIN_SEEDS:
        return f"{seeds} seeds are too few to publish: use at least {MIN_SEEDS}."
    if commit == "unknown" or commit.endswith("+"):
        return f"lib/ or notebooks/ differ from commit {commit}: commit first, so that the reference names its code."
    return ""


def publish(dataset: str, scale: str, notebooks: Sequence[str], executed: Path) -> Path:
    """Replace what the reference has of these notebooks, write the pages, and return the reference's folder. Raise
    ValueError where results may not be published, or the folder holds another data set of the same name."""
    own, reference = findings.results_folder(dataset, scale), findings.reference_folder(dataset, scale)
    found = [json.loads((own / f"{name}.json").read_text(encoding="utf-8")) for name in notebooks]
    found = [result for result in found if result["findings"]]
    for about in (result["about"] for result in found):
        if reason := refusal(scale, about["seeds"], about["commit"]):
            raise ValueError(f"{about['notebook']}: {reason}")
    names, data = [one["about"]["notebook"] for one in found], {one["about"]["data"] for one in found}
    stale = [path for path in reference.glob("[0-9]*") if path.name[:2] in {name[:2] for name in names}]
    others = [path for path in reference.glob("[0-9]*.json") if path not in stale]
    if data and any(json.loads(path.read_text(encoding="utf-8"))["data"] not in data for path in others):
        raise ValueError(f"{reference} holds results of other data with this name: delete it, or rename the data.")
    for path in stale:
        path.unlink()
    for file in [f"{figure}{ending}" for result in found for figure in result["figures"] for ending in ENDINGS]:
        store.write_bytes(reference / file, (own / file).read_bytes())
    path = reference / "findings.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    rows = [row for row in rows if row["notebook"] not in names] + [row for one in found for row in one["findings"]]
    store.write_json(path, sorted(rows, key=lambda row: (row["notebook"], row["finding"])))
    for name in [name for name in notebooks if dataset == "scenes" and name != OWN_MODELS]:  # captions of our own
        text = executed_page(executed / f"{name}.ipynb")
        store.write_bytes(reference / "executed" / f"{name}.md", text.encode())
    for page, text in pages().items():
        store.write_bytes(page, text.encode())
    return reference


def pages() -> dict[Path, str]:
    """Return the generated pages, by path: figures/README.md, and the page of each data set."""
    own = {path.with_name("README.md"): gallery(path.parent) for path in store.ROOT.glob("figures/*/findings.json")}
    return {store.ROOT / "figures" / "README.md": claims_page(), **own}


def claims_page() -> str:
    """Return figures/README.md: a table for each finding, one row per claim, the data sets side by side."""
    parts, references = [], findings.all_references()
    for number, part in references.groupby(references["finding"].str[0]):
        sets = sorted(part["set"].unique(), key=lambda name: (name.split("-")[0] != "scenes", name != "scenes-laptop"))
        claims = []
        for claim, rows in part.groupby("finding"):
            tested = rows.loc[rows["verdict"] != "not testable", ["low", "value", "high"]]
            limits = [0.0, *tested.stack().dropna()]
            by_set = {row["set"]: _cell(row, min(limits), max(limits)) for _, row in rows.iterrows()}
            claims.append((claim, findings.claims()[claim], [by_set.get(name, "") for name in sets]))
        parts.append(("Beyond the paper" if number == "6" else f"Finding {number}", sets, claims))
    return _render("claims.md.j2", parts=parts)


def gallery(folder: Path) -> str:
    """Return the README.md of a reference folder: each figure with its sentence and files, then every verdict."""
    rows = findings.read_reference(folder).sort_values("finding")
    rows["p"] = holm(rows["p"].where(rows["verdict"] != "not testable"))
    dataset, scale = rows["dataset"].iloc[0], rows["scale"].iloc[0]
    source = dataset if dataset in ("scenes", *PRESETS) else f"{dataset}.parquet"
    command = f"./run_all.sh {scale}" + f" --dataset {source}" * (dataset != "scenes")
    about = {"dataset": dataset, "scale": scale, "command": command, "notebooks": rows.groupby("notebook")}
    figures = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("[0-9]*.json")]
    titles = {path.stem: title(path) for path in store.ROOT.glob("notebooks/*.ipynb")}
    executed = {path.stem for path in folder.glob("executed/*.md")}
    return _render("gallery.md.j2", figures=figures, titles=titles, executed=executed, **about)


def executed_page(executed: Path) -> str:
    """Return an executed notebook as Markdown: code folded, the pictures those that are published."""
    book = nbformat.read(executed, as_version=4)
    left_out = {"parameters", "solution"}  # papermill's own cell follows the defaults
    book.cells = [cell for cell in book.cells if not left_out & set(cell.metadata.get("tags", []))]
    words = f"[This notebook](../notebooks/{executed.name}) was executed. Unfold a cell to see its code."
    book.cells.insert(1, nbformat.v4.new_markdown_cell(words))
    template = Path(__file__).with_name("executed.md.j2").read_text(encoding="utf-8")
    text, _ = MarkdownExporter(raw_template=template).from_notebook_node(book)
    for pattern, new in CHANGES.items():
        text = re.sub(pattern, new, text, flags=re.DOTALL)
    return text


def _render(template: str, **values: object) -> str:
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(number=_number, interval=_interval)
    return pages.get_template(template).render(values)


def _number(value: float) -> str:
    return "—" if pd.isna(value) else re.sub(r"^(-?)0\.", r"\1.", f"{value:z.3f}").replace("-", "−")


def _interval(row: pd.Series | dict) -> str:
    return f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


def _cell(row: pd.Series, low: float, high: float) -> str:
    """Return verdict, value and its interval, as numbers and as a bar on a line from `low` to `high`."""
    said = f"{SIGNS.get(row['verdict'], '–')} {row['verdict']}"
    if row["verdict"] == "not testable" or not all(map(math.isfinite, row[["low", "value", "high"]])):
        return said
    place = lambda value: round((value - low) / (high - low or 1) * (WIDTH - 1))  # noqa: E731
    bar = ["\u00a0"] * WIDTH  # GitHub drops common spaces
    for position in range(place(row["low"]), place(row["high"]) + 1):
        bar[position] = "─"
    bar[place(0)], bar[place(row["value"])] = "┊", "●"
    return f"{said}<br>{_interval(row)}<br>`{''.join(bar)}`"


if __name__ == "__main__":
    for page, text in pages().items():
        store.write_bytes(page, text.encode())
