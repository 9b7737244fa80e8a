#!/usr/bin/env bash
# ./run_all.sh [smoke|laptop|gpu|paper] [options]     set up what is missing, then run every notebook
# ./run_all.sh --test                                 run the tests: ruff, mypy, pytest
#
# The scale, laptop unless given, says how many pairs, how many seeds and how large the models are:
#   smoke   minutes for everything; shows that the machinery works, findings are not to be trusted
#   laptop  the findings on a CPU, two cores are enough
#   gpu     the findings with larger models, for one accelerator
#   paper   the paper's own sizes
#
#   --dataset NAME_OR_PATH  scenes (the default), flickr8k, another name on the Hugging Face hub, a parquet file or a folder
#   --only 02               run only the notebooks whose name starts so
#   --from 02               run that notebook and those after it
#   --seeds N               train N seeds instead of three
#   --jobs N                train N models side by side (default: one a core, or one on an accelerator)
#   --force                 train again what is already trained
#   --keep-going            go on to the next notebook after one that failed
#   --list                  list the notebooks, their findings and whether a result is here; runs nothing
#   --lab                   open JupyterLab in the project's environment
#   --help                  show this
#
# Everything lands in runs/ (trained models, executed notebooks, reports, logs) and figures/. Whatever stops it, the same
# command again continues: what is trained stays. Exit status: 0 all done, 1 a notebook or the installation failed,
# 2 something asked for does not exist. A finding that is not reproduced is a result, not a failure.

set -u
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)"
venv="$root/.venv"
lock="$root/runs/environment.lock"

say() { printf '%s\n' "$*" >&2; }

fits() { [ -x "$1" ] && "$1" "$root/lib/environment.py" check >/dev/null 2>&1; }

# The first Python from 3.11 to 3.14 on the PATH; a newer one only where there is no other.
find_python() {
  local newest name path
  for newest in 14 99; do
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
      path="$(command -v "$name" 2>/dev/null)" || continue
      "$path" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null || continue
      printf '%s\n' "$path"
      return 0
    done
  done
  return 1
}

find_conda() { command -v conda || command -v mamba || command -v micromamba; }

# An environment in use that fits, else .venv, else a Python on the PATH that fits.
find_environment() {
  local path
  for path in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" "$venv/bin/python"; do
    if fits "$path"; then printf '%s\n' "$path"; return 0; fi
  done
  [ -d "$venv" ] && return 1
  path="$(find_python)" && fits "$path" && printf '%s\n' "$path"
}

take_lock() {
  local owner told=""
  mkdir -p "$root/runs" && [ -w "$root/runs" ] || { say "[FAIL] $root/runs cannot be written."; exit 1; }
  until mkdir "$lock" 2>/dev/null; do
    owner="$(cat "$lock/pid" 2>/dev/null)"
    if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then rm -rf "$lock"; continue; fi
    [ -n "$told" ] || say "Another run_all.sh is installing; waiting for it (if none is, delete $lock)."
    told=yes
    sleep 2
  done
  trap 'rm -rf "$lock"' EXIT
  trap 'exit 130' INT TERM HUP
  echo $$ >"$lock/pid"
}

# Make the empty environment with conda: Python and pip, as environment.yml lists them above its pip section.
make_with_conda() {
  local specs
  specs="$(sed -n '/^dependencies:/,/- pip:/s/^  - \([a-z]*=[0-9.]*\).*/\1/p' "$root/environment.yml")"
  # shellcheck disable=SC2086  # one word a package
  "$1" create --yes --prefix "$venv" --channel conda-forge $specs >"$root/runs/environment.log" 2>&1
}

make_with_venv() {
  local torch
  if ! "$1" -c 'import venv, ensurepip' 2>/dev/null; then
    say "[FAIL] $1 cannot make virtual environments. On Debian and Ubuntu: sudo apt-get install python3-venv"
    return 1
  fi
  "$1" -m venv "$venv" || { say "[FAIL] $1 -m venv $venv failed, see above."; return 1; }
  torch="$("$1" "$root/lib/environment.py" torch)"
  if [ -n "$torch" ]; then
    say "Keeping the torch of $1."
    "$venv/bin/python" "$root/lib/environment.py" keep "$torch"
  fi
}

make_environment() {
  local python conda
  take_lock
  if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    rm -rf "$venv"
    python="$(find_python)"
    conda="$(find_conda)"
    if [ -z "$python$conda" ]; then
      say "[FAIL] no Python 3.11 or newer on the PATH (and no conda, mamba or micromamba)."
      say "       Install one, from python.org or your system's packages, and run the same command again."
      exit 1
    fi
    say "Making the environment $venv (once)."
    if [ -n "$conda" ] && make_with_conda "$conda"; then
      :
    elif [ -n "$python" ]; then
      [ -z "$conda" ] || say "$conda failed (see $root/runs/environment.log); using Python's venv."
      rm -rf "$venv"
      make_with_venv "$python" || exit 1
    else
      tail -n 12 "$root/runs/environment.log" >&2
      say "[FAIL] $conda could not make $venv. The whole log: $root/runs/environment.log"
      exit 1
    fi
  fi
  "$venv/bin/python" "$root/lib/environment.py" complete "$root/runs/environment.log" || exit
  rm -rf "$lock"
  trap - EXIT INT TERM HUP
}

run_tests() {
  local status=0
  cd "$root" || exit 1
  unset CLIPMEM_RUNS CLIPMEM_RUN_ID CLIPMEM_PROGRESS CLIPMEM_COMMAND CLIPMEM_JOBS CLIPMEM_BEGUN
  echo "== ruff" && "$1" -m ruff check lib tests notebooks || status=1
  echo "== mypy" && "$1" -m mypy || status=1
  echo "== pytest" && "$1" -m pytest || status=1
  exit "$status"
}

for word in "$@"; do
  case "$word" in
    --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --test) [ $# -eq 1 ] || { say "--test stands alone."; exit 2; } ;;
  esac
done

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
case "$0" in */*) export CLIPMEM_COMMAND="$0" ;; *) export CLIPMEM_COMMAND="./$0" ;; esac
if ! environment="$(find_environment)"; then
  # A misspelt option is told before an installation of minutes.
  if [ "${1:-}" != --test ] && starter="$(find_python)"; then "$starter" -P -m lib.preflight "$@" || exit; fi
  make_environment
  environment="$venv/bin/python"
fi
if [ "${1:-}" = --test ]; then run_tests "$environment"; fi
exec "$environment" -P -m lib.run "$@"
