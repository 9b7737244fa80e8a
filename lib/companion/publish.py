"""The reference in figures/: copied from a run, and the pages that show it.

python -m lib.companion.publish     write the pages from what is published: figures/README.md and one per data set
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
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
CLAIMS = """# Every claim and its verdict

Each cell holds the verdict, the value with its 95 % interval (over seeds and pairs, or over seeds only where a test says
so), and the interval drawn to the scale of its row (┊ marks 0). A claim of the paper is ● reproduced, ○ contradicted or
◐ inconclusive; a claim of our own, which the paper does not make, is ● supported, ○ not supported or ◐ inconclusive. –
means not testable. The page of a data set says what decides each claim, with its p value and the smallest effect that
it could have found. The claims and their tests are in [`claims.json`](../lib/companion/claims.json). They were committed
before the models were trained. `coco12k` is a file of 12,000 COCO images with captions and categories, which we cannot
redistribute; it has one caption per image, so some claims cannot be tested there.
"""
VERDICTS = (
    "The interval alone decides a verdict; p is adjusted for all claims of a page (Holm). The *smallest detectable* "
    "effect is found in 80 % of all cases. [What the claims say, for all data sets](../README.md)"
)
PAGE = """{% extends 'markdown/index.md.j2' %}
{% block input %}
<details><summary>code</summary>

```python
{{ cell.source }}
```

</details>
{% endblock input %}
{% block data_png %}{% set about = output.metadata.get('image/png', {}) %}
{% if about.figure %}![{{ about.alt }}](../../{{ about.figure }}.png){% endif %}
{% endblock data_png %}
{% block data_html %}
{{ output.data['text/html'] }}
{% endblock data_html %}"""  # a figure is named by its folder and file below figures/


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
    results = [json.loads((own / f"{name}.json").read_text(encoding="utf-8")) for name in notebooks]
    for result in [result for result in results if result["findings"]]:
        about = result["about"]
        if reason := refusal(scale, about["seeds"], about["commit"]):
            raise ValueError(f"{about['notebook']}: {reason}")
        stale = sorted(reference.glob(f"{about['notebook'][:2]}_*"))
        others = [path for path in sorted(reference.glob("[0-9]*.json")) if path not in stale]
        if any(json.loads(path.read_text(encoding="utf-8"))["data"] != about["data"] for path in others):
            raise ValueError(
                f"{reference} holds results of other data with the same name: delete it, or rename the data"
            )
        for path in stale:
            path.unlink()
        for name in [f"{figure}{ending}" for figure in result["figures"] for ending in ENDINGS]:
            store.write_bytes(reference / name, (own / name).read_bytes())
        path = reference / "findings.json"
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        kept = [row for row in old if row["notebook"] != about["notebook"]] + result["findings"]
        store.write_json(path, sorted(kept, key=lambda row: (row["notebook"], row["finding"])))
    for name in [name for name in notebooks if dataset == "scenes" and name != OWN_MODELS]:  # captions of our own
        text = executed_page(executed / f"{name}.ipynb")
        store.write_bytes(reference / "executed" / f"{name}.md", text.encode())
    write_pages()
    return reference


def write_pages() -> None:
    """Write figures/README.md and the page of each data set from what is published."""
    store.write_bytes(store.ROOT / "figures" / "README.md", claims_page().encode())
    for path in sorted(store.ROOT.glob("figures/*/findings.json")):
        store.write_bytes(path.with_name("README.md"), gallery(path.parent).encode())


def claims_page() -> str:
    """Return figures/README.md: one row per claim, the data sets side by side, a table for each finding."""
    rows, text = findings.all_references(), CLAIMS
    for finding, part in rows.groupby(rows["finding"].str[0]):
        sets = sorted(part["set"].unique(), key=lambda name: (name.split("-")[0] != "scenes", name != "scenes-laptop"))
        heads = ["", "claim", "the paper", *(f"[{name}]({name}/README.md)" for name in sets)]
        lines = []
        for claim, same in part.groupby("finding"):
            entry, by_set = findings.claims()[claim], same.set_index("set")
            tested = same.loc[same["verdict"] != "not testable", ["low", "value", "high"]]
            limits = [0.0, *tested.stack().dropna()]
            cells = [_cell(by_set.loc[name], min(limits), max(limits)) if name in by_set.index else "" for name in sets]
            said = entry["claim"] + f" (withdrawn: {entry.get('withdrawn')})" * ("withdrawn" in entry)
            lines.append([f'<a name="{claim}"></a>**{claim}**', said, entry["paper"] or "—", *cells])
        text += f"\n## {'Beyond the paper' if finding == '6' else f'Finding {finding}'}\n\n{_table(heads, lines)}"
    return text


def gallery(folder: Path) -> str:
    """Return the README.md of a reference folder: each figure with its sentence and files, then every verdict."""
    rows = findings.read_reference(folder)
    rows["p"] = holm(rows["p"].where(rows["verdict"] != "not testable"))
    dataset, scale = rows["dataset"].iloc[0], rows["scale"].iloc[0]
    source = dataset if dataset in PRESETS else f"{dataset}.parquet"
    command = f"./run_all.sh {scale}" + f" --dataset {source}" * (dataset != "scenes")
    text = f"# {dataset}, scale {scale}\n\nReference results. {VERDICTS}\n"
    figures = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[0-9]*.json"))]
    for notebook, part in rows.groupby("notebook"):
        path, page = store.ROOT / "notebooks" / f"{notebook}.ipynb", folder / "executed" / f"{notebook}.md"
        text += f"\n## {title(path)}\n\n[Notebook {notebook[:2]}](../../notebooks/{notebook}.ipynb)"
        seeds, commits = part["seeds"].max(), ", ".join(sorted(set(part["commit"])))
        text += f" · {seeds} seeds · commit {commits} · repeat it: `{command} --only {notebook[:2]} --seeds {seeds}`"
        text += f" · [executed](executed/{notebook}.md)\n" * page.exists() or "\n"
        own = [one for one in figures if one["notebook"] == notebook]
        for one in sorted(own, key=lambda one: one["place"]):
            text += f"\n### {one['title']}\n\n![{one['title']}]({one['figure']}.png)\n\n"
            text += f"{one['footer']} [Table]({one['figure']}.csv) · [PDF]({one['figure']}.pdf)\n"
        lines = [_details(row) for _, row in part.sort_values("finding").iterrows()]
        text += "\n### Verdicts\n\n"
        text += _table(["", "verdict", "what decides", "value", "p", "smallest detectable"], lines)
    return text


def _details(row: pd.Series) -> list[str]:
    p = "< .001" if row["p"] < 0.0005 else _number(row["p"])
    verdict = f"**{row['verdict']}**" + f": {row['reason']}" * bool(row["reason"])
    link = f"[{row['finding']}](../README.md#{row['finding']})"
    return [link, verdict, row["statistic"], _interval(row), p, _number(row["smallest_detectable"])]


def _number(value: float) -> str:
    return "—" if pd.isna(value) else re.sub(r"^(-?)0\.", r"\1.", f"{value:z.3f}").replace("-", "−")


def _interval(row: pd.Series) -> str:
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


def _table(heads: list[str], lines: list[list[Any]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def executed_page(executed: Path) -> str:
    """Return an executed notebook as Markdown: code folded, the pictures those that are published."""
    book = nbformat.read(executed, as_version=4)
    left_out = ("parameters", "solution")  # papermill's own cell follows the defaults
    book.cells = [cell for cell in book.cells if not set(left_out) & set(cell.metadata.get("tags", []))]
    for cell in book.cells:
        if cell.cell_type == "markdown":
            text = cell.source.replace("](../", "](../../../")
            text = text.replace(f"]({OWN_MODELS}.ipynb)", f"](../../../notebooks/{OWN_MODELS}.ipynb)")
            cell.source = re.sub(r"\]\((\d\w+)\.ipynb\)", r"](../../scenes-laptop/executed/\1.md)", text)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":  # without the states of progress bars
                output.text = "\n".join(line for line in output.text.split("\n") if "\r" not in line)
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = re.sub(r"<style.*?</style>\s*", "", output.data["text/html"], flags=re.S)
    words = f"[This notebook](../../../notebooks/{executed.name}) was executed. Unfold a cell to see its code."
    book.cells.insert(1, nbformat.v4.new_markdown_cell(words))
    text, _ = MarkdownExporter(raw_template=PAGE).from_notebook_node(book)
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    write_pages()
