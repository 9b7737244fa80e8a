"""Run the notebooks in order: check everything first, say what it will cost, and at the end what was found.

python -m lib.run [smoke|laptop|deep|gpu|paper|paper16] [options]      ./run_all.sh --help describes them

At the top stand only the standard library and lib.recipes, which needs nothing else: run_all.sh has its options checked
before anything is installed.
"""

import os
import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from lib.recipes import SCALES, did_you_mean, slug

ROOT = Path(__file__).resolve().parent.parent
# Options with a value: seeds as in the notebooks; jobs 0 and precision "" stand for what is right for this machine
DEFAULTS = dict(dataset="scenes", captions="", image="", only="", seeds=5, jobs=0, precision="", course="")
DEFAULTS |= {"from": "", "models": "", "seen": "", "ray": "", "share": "", "export": ""}
FLAGS = ("force", "keep-going", "publish", "list", "lab")


def parse(words: list[str]) -> Namespace:
    """Return the options of a command line. End the program with status 2 and a message where one does not exist."""
    usage = "./run_all.sh [SCALE] [OPTIONS]; ./run_all.sh --help lists them"
    parser = ArgumentParser("run_all.sh", usage, add_help=False, allow_abbrev=False)
    parser.add_argument("scale", nargs="?", default="laptop")
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", dest=name.replace("from", "start"), default=value, type=type(value))
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    options, unknown = parser.parse_known_args(words)
    if unknown:
        known = [f"--{name}" for name in (*DEFAULTS, *FLAGS, "test", "help")]
        parser.error(f"{unknown[0]!r} is not an option.{did_you_mean(unknown[0].split('=')[0], known)}")
    if options.scale not in SCALES:
        hint = did_you_mean(options.scale, SCALES)
        parser.error(f"no scale is called {options.scale!r}: {', '.join(SCALES)}.{hint}")
    options.course, options.export = map(os.path.expanduser, (options.course, options.export))
    course, secret = options.course, ROOT / "lib" / "course.py"
    jobs, precision = map(os.environ.get, ("CLIPMEM_JOBS", "CLIPMEM_PRECISION"))
    wrong = {
        "--seeds and --jobs: expected a whole number from 1": options.seeds < 1 or options.jobs < 0,
        "--precision: expected fp32 or bf16": options.precision not in ("", "fp32", "bf16"),
        "CLIPMEM_JOBS: expected a whole number from 1": not (jobs or "1").lstrip("0").isdecimal(),
        "CLIPMEM_PRECISION: expected fp32 or bf16": precision not in (None, "", "fp32", "bf16"),
        "--only and --from: use one of them": options.only and options.start,
        "--share: expected I/N with I from 1 to N, such as 3/16": options.share and not _is_share(options.share),
        "--export: name the architecture that will be trained, such as --models ViT-B-32": options.export
        and (not options.models or set(options.models) & set(":,")),
        "--dataset: expected a name or a path, got an empty text": not options.dataset.strip(),
        f"--course: {course} exists and is not empty; name a new folder": os.path.isfile(course)
        or (os.path.isdir(course) and os.listdir(course)),
        f"--course: {secret} is missing; a student's copy cannot make a course": course and not secret.is_file(),
    }
    for sentence in filter(wrong.get, wrong):
        parser.error(sentence)
    path = os.path.abspath(os.path.expanduser(options.dataset))
    if os.path.exists(path) and slug(options.dataset) != options.dataset:  # a built-in name is its own slug
        options.dataset = path  # because notebooks run in another folder
    values = {name: getattr(options, name) for name in DEFAULTS if name not in ("only", "from", "course")}
    options.given = {name: value for name, value in values.items() if value != DEFAULTS[name]}
    return options


def _is_share(text: str) -> bool:
    index, _, count = text.partition("/")
    return index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)


def chosen(project: Path, options: Namespace) -> list[Path]:
    """Return the notebooks to run, in order: by number, or by a part of the name; none where none fits."""
    every, word = sorted(project.glob("notebooks/[0-9]*.ipynb")), options.only or options.start
    number = f"{int(word):02d}_" if word.isdecimal() else ""
    fits = [path for path in every if (path.stem.startswith(number) if number else word in path.stem)]
    return fits if options.only or not fits else every[every.index(fits[0]) :]


def open_lab(project: Path) -> None:
    """Become JupyterLab at the tour, in this Python. Does not return."""
    from lib import store

    settings = store.root() / "jupyter"  # a default that the user's own settings still override
    quiet = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}  # asks no question about news
    store.write_json(settings / "labconfig" / "default_setting_overrides.json", quiet)
    os.environ["CLIPMEM_RUNS"] = str(store.shared())  # absolute, because notebooks run in another folder
    others = os.environ.get("JUPYTER_CONFIG_PATH", "").split(os.pathsep)
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join([str(settings), *filter(None, others)])
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={project}", "--log-level=WARN"]
    words += ["--LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb", *["--allow-root"] * (os.geteuid() == 0)]
    print("Opening JupyterLab; start with 00_tour", flush=True)
    os.execv(sys.executable, words)


def run_all(project: Path, options: Namespace, notebooks: list[Path]) -> int:
    """Check, run the notebooks, print what they found. Return the exit status: 0, or 1 where one failed."""
    from filelock import FileLock, Timeout

    from lib import costs, execute, findings, report, store, study, sweep

    stems = [path.stem for path in notebooks]
    where = (options.scale, options.dataset, options.seeds, options.captions, options.image)
    execute.check(options, notebooks)
    if options.scale in execute.LARGE:
        print(f"[OK]   {costs.of_scale(options.scale, options.dataset)}", flush=True)
    if options.share:
        sweep.share(study.wanted(stems, *where), options.share)
        return 0
    folder, done = store.root() / "executed" / f"{slug(options.dataset)}-{options.scale}", []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            seconds = estimate(options, notebooks)
            if options.ray:
                sweep.on_ray(study.wanted(stems, *where), options.ray)
            for number, notebook in enumerate(notebooks):
                if execute.run_one(project, options, notebook, folder / notebook.name, sum(seconds[number + 1 :])):
                    done.append(notebook)
                elif not options.keep_going:
                    break
    except Timeout:
        print("[FAIL] another run_all.sh is at this data set and scale. Wait for it, or stop it.", file=sys.stderr)
        return 1
    report.print_findings(options.dataset, options.scale, done)
    page = f"Report: {(store.root() / 'report' / folder.name / 'index.html').as_uri()}" if done else ""
    print(f"\n{len(done)} of {len(notebooks)} notebooks done. {page}", flush=True)
    if options.publish and done == notebooks:
        from lib import pages  # which a student's copy cannot import

        reference = findings.publish(options.dataset, options.scale, [path.stem for path in notebooks])
        for tour in [path for path in notebooks if path.stem == "00_tour"]:
            execute.run_one(project, options, tour, folder / tour.name)  # again, because it shows the reference
        pages.publish(options.dataset, options.scale, [folder / path.name for path in notebooks])
        print(f"Published in {reference}, figures/README.md and README.md")
    return int(done != notebooks)


def estimate(options: Namespace, notebooks: list[Path]) -> list[float]:
    """Print what the run will cost. Return the seconds of each notebook."""
    from lib import execute, store, study

    store.rebuild(float(os.environ["CLIPMEM_BEGUN"]) if options.force else 0)
    where = (options.scale, options.dataset, options.seeds, options.captions, options.image)
    costs = study.cost([path.stem for path in notebooks], *where)
    models, absent = sum(row[1] for row in costs), sum(row[2] for row in costs)
    left = f"about {execute.duration(sum(row[3] for row in costs))} on this machine" if absent else "nothing to train"
    count = "1 notebook" if len(notebooks) == 1 else f"{len(notebooks)} notebooks"
    print(f"{count}, {models} models, {models - absent} in the store, {left}", flush=True)
    return [row[3] for row in costs]


def start(project: Path, options: Namespace) -> int:
    """Do what the options say, and return the exit status."""
    from lib import captions, execute, findings, report, store

    notebooks, word = chosen(project, options), options.only or options.start
    try:
        if options.lab:
            open_lab(project)
        elif options.list:
            report.print_list(options.dataset, options.scale, notebooks)
        elif options.export:
            from lib import export, study

            where = (options.scale, options.dataset, options.captions, options.image)
            base = study.plan("02_miscaptioned_memorization", *where)[1]["CLIP"]
            print(*export.export(base, Path(options.export).absolute(), options.models), sep="\n\n")
        elif options.course:
            from lib import course  # which a student's copy lacks

            course.build(Path(options.course))
        elif notebooks:
            return run_all(project, options, notebooks)
        else:
            stems = [path.stem for path in chosen(project, parse([]))]
            raise execute.NotebookError(f"no notebook is called {word!r}: {', '.join(stems)}")
        return 0
    except (execute.NotebookError, captions.DataError, findings.FindingsError, store.StoreError) as error:
        print(f"[FAIL] {error}", file=sys.stderr)
        return 2 if isinstance(error, execute.NotebookError | captions.DataError) else 1


def main(words: list[str], project: Path = ROOT) -> int:
    """Do what run_all.sh was asked, and return its exit status."""
    options = parse(words)
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not os.access(cache if os.path.exists(cache) else os.path.dirname(cache), os.W_OK):
        from lib import store  # where libraries then keep what they fetch: a home may only be read

        os.environ |= dict.fromkeys(("XDG_CACHE_HOME", "MPLCONFIGDIR"), str(store.root() / "cache"))
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a kernel `python3` in the user's home may be another Python
    os.environ |= {f"CLIPMEM_{n.upper()}": str(v) for n in ("jobs", "precision") if (v := getattr(options, n))}
    if options.force:
        os.environ["CLIPMEM_BEGUN"] = str(time.time())  # what is finished after it stays
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)  # end as Ctrl-C does
    try:
        return start(project, options)
    except KeyboardInterrupt:
        print("\nStopped. The same command continues; what is trained stays.", file=sys.stderr)
        return 130
    except (OSError, MemoryError) as error:  # a full disk above all
        said = str(error) or "out of memory"
        print(f"[FAIL] {said}. What is trained stays; the same command continues.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
