"""What exists because this is a companion; here, the options of run_all.sh, which any Python checks."""

import os
from argparse import ArgumentParser, Namespace

from lib.recipes import SCALES

ABOUT = """smoke: minutes; shows that the machinery works and decides nothing. laptop: the findings, on a CPU. deep: few
pairs seen often, for finding 1 (--only 01). gpu, paper, paper16: for an accelerator. Results go to runs/, or to the
folder that CLIPMEM_RUNS names. Whatever stops a run, the same command continues it. Exit status: 0 done, 1 something
failed, 2 refused before the start, 130 stopped. A claim that does not hold is a result, not a failure."""


def parse(words: list[str]) -> Namespace:
    """Return the options of a command line; exit with status 2 where they are wrong, with 0 after --help."""
    parser = ArgumentParser("./run_all.sh", description=ABOUT, allow_abbrev=False)
    add, some = parser.add_argument, parser.add_mutually_exclusive_group()
    add("scale", nargs="?", default="laptop", choices=SCALES, help="how many pairs and how large a model (laptop)")
    some.add_argument("--only", metavar="02", default="", help="run only notebooks of this number or part of a name")
    some.add_argument("--from", metavar="02", dest="start", default="", help="run that notebook and those after it")
    add("--dataset", metavar="X", default="scenes", help="scenes, flickr8k, coco, cc3m, a name on the Hub, or a path")
    add("--captions", metavar="A,B", default="", help="columns that hold captions, if they are not found")
    add("--image", metavar="COLUMN", default="", help="column that holds the pictures, if it is not found")
    add("--models", metavar="F,G", default="", help="notebook 05: ARCHITECTURE:FILE_OR_TAG, hf-hub:… or local-dir:…")
    add("--seen", metavar="F,G", default="", help="notebook 05: the rows that each was trained on: a column or a file")
    add("--seeds", metavar="N", type=int, help="how many times everything is trained (5; of --audit 10)")
    add("--jobs", metavar="N", type=int, help="models trained at once (one per core; one on an accelerator)")
    add("--device", choices=("cpu", "cuda", "mps"), help="where models are trained (the fastest there is)")
    add("--precision", choices=("fp32", "bf16"), help="of products (bf16 on GPUs that have it, and with AMX)")
    add("--ray", metavar="ADDRESS", default="", help="train on a Ray cluster (auto, local, …); then run the notebooks")
    add("--share", metavar="I/N", default="", help="train the I-th of N shares of the models, and end")
    add("--force", action="store_true", help="train again what is already trained")
    add("--keep-going", action="store_true", help="go on to the next notebook after one that failed")
    add("--publish", action="store_true", help="afterwards copy the results to figures/, the reference")
    add("--audit", metavar="PAIRS", help="sort the pairs of a file or folder, the most suspicious first")
    add("--lab", nargs="...", metavar="ARGUMENT", help="open JupyterLab at the tour; what follows goes to Jupyter")
    add("--course", metavar="DIR", help="write a course to DIR: copies for students and instructors, a lesson plan")
    add("--test", action="store_true", help="test the project itself: ruff, mypy, pytest")
    options = parser.parse_args(words, Namespace(scores="own"))  # what a notebook reads by itself is published
    options.seeds = (10 if options.audit else 5) if options.seeds is None else options.seeds
    of_notebooks = options.only, options.start, options.publish, options.share, options.ray, options.force
    if options.audit is not None and (any(of_notebooks) or options.dataset != "scenes"):
        parser.error("--audit runs no notebooks: only --seeds, --captions, --image, --jobs, --device and --precision")
    if options.seeds < 1 or (options.jobs is not None and options.jobs < 1):
        parser.error("--seeds and --jobs: expected a whole number from 1 on")
    index, _, count = (options.share or "1/1").partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        parser.error("--share: expected I/N with I from 1 to N, such as 3/16")
    return options


def entries(text: str) -> list[str]:
    """Return what an option names, with commas between several."""
    return [one.strip() for one in text.split(",")] if text else []


def path_in(text: str) -> str:
    """Return the path in an option, if it exists: all of it, or what follows the first colon."""
    return next((path for path in (text, text.partition(":")[2]) if os.path.exists(os.path.expanduser(path))), "")
