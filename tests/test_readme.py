"""README's first screen: each number in it follows from the published tables, and each row says what its claims say."""

import math
import re

import pytest
from conftest import ROOT

from lib.companion import findings

SETS = ("scenes-laptop", "scenes-deep", "flickr8k-laptop", "coco12k-laptop")
SCENES, DEEP, FLICKR, COCO = (ROOT / "figures" / name for name in SETS)
REFERENCE = findings.all_references().set_index(["finding", "set"])["published"]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SAID = {  # the verdicts that README's sentences rest on: + holds, - the opposite holds, ~ negligible, ? undecided
    "1a": "c+d+s~", "1b": "c+d+s+", "1c": "c-d-s-", "1e": "c?d?s?", "1h": "d+", "1i": "d?", "2a": "f+s+", "2b": "f?s-",
    "2f": "s+", "2g": "s+", "2i": "f+s+", "2l": "f-s?", "2m": "f?s+", "2n": "f+s+", "2q": "f?s+", "3a": "f+s+",
    "3b": "s+", "3c": "f+s+", "3d": "f?s?", "3f": "f?s+", "3g": "f-s?", "4b": "f+s+", "4c": "f+s~", "4d": "s?",
    "4e": "f+s+", "4f": "f?s?", "4g": "f-s-", "4h": "f+s+", "4i": "f+s+", "4j": "f?s-", "4k": "f?s-", "4l": "f+s+",
    "4m": "f?s?", "4o": "f?s+",
}  # fmt: skip


def unitmem(folder, score="unitmem"):
    """Return UnitMem of the last layer: supervised, CLIP, self-supervised."""
    rows = findings.read_table(folder, "01_layers").query(f"score == '{score}' and layer == layer.max()")
    return rows.set_index("objective")["value"][["supervised", "CLIP", "self-supervised"]].tolist()


def clipmem(folder):
    rows = findings.read_table(folder, "02_wrong_captions").query("subset == 'pool'")
    return rows.groupby("corruption")["clipmem"].mean()


def encoders(folder):
    rows = findings.read_table(folder, "03_swap").query("subset == 'pool' and corruption == 'all kinds'")
    return rows.set_index("encoder")["value"][["both", "text", "image"]].tolist()


def five_captions(folder, *others):
    return findings.read_table(folder, "04_captions").set_index("name")["m"][["CLIP", "5 captions", *others]].tolist()


def lead(folder):
    """Return the text encoder's lead as a share of CLIPMem: with a tenth of the words dropped, and without."""
    rows = findings.read_table(folder, "03_lead").set_index("captions")
    found = ((rows["text_part"] - rows["image_part"]) / rows["clipmem"]).groupby("captions").mean()
    return found[["words dropped", "as they are"]].tolist()


def auc(name):
    rows = findings.read_table(SCENES, "02_detection").query("model == 'trained on the pair'")
    return rows.set_index("name")["value"][name]


def numbers():
    """Return the numbers of each row, and of the paragraph "Beyond the paper" (0), in their order."""
    deep, coco, scenes, flickr = unitmem(DEEP), unitmem(COCO), clipmem(SCENES), clipmem(FLICKR)
    sslmem = [findings.read_table(one, "03_sslmem").query("name == 'clean'")["value"] for one in (SCENES, FLICKR)]
    return {
        "1": [*deep, *coco, *(supervised - clip for supervised, clip, _ in (deep, coco, unitmem(SCENES)))],
        "2": [*(one[name] for one in (scenes, flickr) for name in ("swapped", "clean")),
              scenes["inverted"], flickr["inverted"]],
        "3": [*encoders(SCENES), *encoders(FLICKR), *lead(SCENES), *lead(FLICKR), *sslmem[0], *sslmem[1]],
        "4": [*five_captions(SCENES), *five_captions(FLICKR), five_captions(SCENES, "10,000 pairs, 3 epochs")[2]],
        "0": [auc("early loss"), auc("CLIPMem")],
    }  # fmt: skip


def said(row):
    """Return the text of a row's last cell, or of the paragraph."""
    if row == "0":
        return README.split("*Beyond the paper:*")[1].split("\n\n")[0]
    return next(line for line in README.splitlines() if line.startswith(f"| [**{row}**]")).split("|")[3]


@pytest.mark.parametrize("row", "12340")
def test_the_numbers_of_the_first_screen_follow_from_the_tables(row):
    found = re.findall(r"(?<![\w.])(\d?)\.(\d+)|(\d+) %", said(row))
    expected = numbers()[row]
    assert len(found) == len(expected)
    for (ones, decimals, percent), value in zip(found, expected, strict=True):
        text = f"{value:.{len(decimals)}f}" if decimals else f"{value:.0%}"
        assert text == (f"{ones or 0}.{decimals}" if decimals else f"{percent}%")


def test_by_the_median_the_first_two_of_row_1_change_places_where_readme_says_so():
    for folder, sign in ((DEEP, 1), (SCENES, -1), (COCO, -1)):
        supervised, clip, _ = unitmem(folder, "unitmem_median")
        assert sign * (supervised - clip) > 0


@pytest.mark.parametrize("row", "1234")
def test_a_row_is_yes_where_every_claim_of_the_paper_is_reproduced_on_all_sets(row):
    of_paper = [name for name in findings.claims() if name[0] == row and findings.of_paper(name)]
    verdicts = REFERENCE[REFERENCE.index.get_level_values(0).isin(of_paper)]
    held = verdicts[verdicts != "not testable"] == "reproduced"
    expected = "● yes" if held.all() else "○ no" if not held.any() else "◐ partly"
    line = next(line for line in README.splitlines() if line.startswith(f"| [**{row}**]"))
    assert line.split("|")[2].strip() == expected


def test_every_sentence_that_states_a_verdict_names_its_claims_and_these_found_what_it_says():
    letters, signs = dict(zip(SETS, "sdfc", strict=True)), {1: "+", -1: "-", 0: "~"}
    for claim in re.findall(r"#(\d[a-z])\)", README):
        held = [letters[one] + signs.get(findings.HELD.get(verdict), "?") for one, verdict in REFERENCE[claim].items()]
        assert "".join(sorted(held)) == SAID[claim], f"{claim}: read README's sentence again, then change SAID"


def test_the_page_on_audits_says_what_2q_found():
    rows = findings.read_reference(SCENES).set_index("finding")["value"]
    alike = 0.5 + rows["2q"]
    text = " ".join((ROOT / "lib" / "README.md").read_text(encoding="utf-8").split())
    assert f"correlate by only {alike:.2f} (claim".replace("0.", ".") in text
    assert f"The mean of {math.ceil(4 / alike - 4)} seeds would reach a reliability of .8." in text
