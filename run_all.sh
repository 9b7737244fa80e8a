#!/usr/bin/env bash
# ./run_all.sh [smoke|laptop|deep|gpu|paper|paper16] [options]    install what is missing, run the notebooks, show the findings
#   smoke   minutes; shows that the machinery works and decides nothing
#   laptop  the findings on a CPU, two cores are enough; the default
#   deep    few pairs seen often: finding 1 by pairs; use --only 01
#   gpu     larger models, for one accelerator
#   paper   the paper's own sizes, with ViT-B/32 (paper16: ViT-B/16); first says the hours, memory and disk of a model
#
#   --dataset NAME_OR_PATH  scenes (the default), flickr8k, coco, cc3m, another name on the Hugging Face Hub, a parquet
#                           file, or a folder of images or of WebDataset shards
#   --captions COLUMNS      the columns that hold captions, with commas between them, where they are not found
#   --image COLUMN          the column that holds the pictures, where it is not found
#   --models A,B            score pairs by one or two models of your own (--only 05): ARCHITECTURE:FILE_OR_TAG,
#                           hf-hub:OWNER/NAME or local-dir:FOLDER
#   --seen X,Y              which pairs each was trained on: a boolean column, or a text file of row numbers
#   --only 02               run only the notebooks with this number, or with this text in their name
#   --from 02               run that notebook and those after it
#   --seeds N               train everything N times instead of five times
#   --jobs N                train N models side by side (default: one per core, or one on an accelerator)
#   --precision fp32|bf16   compute products in fp32 or bf16 (default: bf16 where the hardware multiplies it)
#   --ray ADDRESS           train on the machines of a Ray cluster (local: on this one); then run the notebooks here
#   --share I/N             train the I-th of N shares of the models, and end; start all N on machines that share the store
#   --export DIR            write the split of f and g as WebDataset shards for open_clip_train (--models ARCHITECTURE)
#   --force                 train again what is already trained
#   --keep-going            go on to the next notebook after one that failed
#   --publish               afterwards copy the results to figures/, the reference, and list them in figures/README.md
#   --list                  list the notebooks and what they found; runs nothing
#   --lab                   open JupyterLab at the tour
#   --course DIR            write a course to DIR: copies for students and instructors, slides, a lesson plan
#   --test                  test the project itself: ruff, mypy, pytest
#   --help                  show this
#
# Results go to runs/ (another folder: CLIPMEM_RUNS). Whatever stops it, the same command continues. Exit status: 0 done,
# 1 something failed, 2 refused before the start, 130 stopped. A claim that does not reproduce is a result, no failure.

[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh run_all.sh
set -u; unset PYTHONHOME # a wrong one would break every Python, and make a good .venv look broken
case "$0" in */*) self="$0" ;; *) self="./$0" ;; esac; export CLIPMEM_COMMAND="$self"
while [ -L "$self" ]; do link="$(readlink "$self")"; case "$link" in /*) self="$link" ;; *) self="${self%/*}/$link" ;; esac; done
root="$(CDPATH='' cd -- "${self%/*}/" && pwd -P)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
[ -n "${HOME:-}" ] || export HOME=~ # without one, and for a user without a name, Jupyter would not start
umask u=rwx # what is written here is read again here
[ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -ge 256 ] || ulimit -Sn 256 2>/dev/null || echo "[NOTE] only $(ulimit -n) files may be open at once; what fails may need more: ulimit -n 256" >&2
[ "$(ulimit -v)" = unlimited ] || [ "$(ulimit -v)" -ge 8000000 ] || echo "[NOTE] memory is limited to $(ulimit -v) kB; what fails may need more: ulimit -v 8000000" >&2
[ -t 1 ] || export TQDM_MININTERVAL=30 # seconds; in a log, progress is a line per half minute
case " $* " in
  *" --help "* | *" -h "*) sed -n '2,/^$/s/^# \{0,1\}//p' "$self"; exit 0 ;;
  " --test ") ;;
  *" --test "*) echo "--test stands alone." >&2; exit 2 ;;
esac

# has PYTHON PACKAGES: is this a Python 3.11 or newer with all of them? (a build such as 2.15.0+cpu counts as 2.15.0)
has() {
  "$1" -P -c '
import sys; from importlib.metadata import version; from pip._vendor.packaging import requirements, version as parsed
for package in map(requirements.Requirement, sys.argv[1].split()):
    assert package.specifier.contains(parsed.Version(version(package.name)).base_version)' "$2" 2>/dev/null
}
packages() { sed -n "/$1/,/$2/s/^      - \([^ ]*\).*/\1/p" "$root/environment.yml"; }
runtime="$(packages "- pip:" "test tools")" tools="$(packages "test tools" end)" course="$(packages "course tools" "ray tools")" ray="$(packages "ray tools" end)"
python=""

# The active environment, else .venv, else (where there is no .venv) the Python on the PATH: the first that has all.
for path in "${VIRTUAL_ENV:-/-}" "${CONDA_PREFIX:-/-}" "$root/.venv"; do
  if has "$path/bin/python" "$runtime"; then python="$path/bin/python"; break; fi
done
if [ -z "$python" ] && [ ! -d "$root/.venv" ] && has python3 "$runtime"; then python=python3; fi
if [ -z "$python" ]; then python="$root/.venv/bin/python"; bash "$root/lib/install.sh" "$python" "$runtime" "$@" || exit; fi
case " $*" in *" --ray"*) has "$python" "$ray" || bash "$root/lib/install.sh" "$python" "$ray" "$@" || exit ;; esac
case " $*" in *" --course"*) has "$python" "$course" || bash "$root/lib/install.sh" "$python" "$course" "$@" || exit ;; esac
[ "$*" = --test ] || exec "$python" -P -m lib.run "$@"

has "$python" "$tools" || bash "$root/lib/install.sh" "$python" "$tools" || exit
cd "$root" && unset "${!CLIPMEM_@}" && status=0
for tool in "ruff check lib tests notebooks" mypy pytest; do echo "== $tool"; "$python" -m $tool || status=1; done
exit "$status"
