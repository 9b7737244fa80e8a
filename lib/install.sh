#!/usr/bin/env bash
# install.sh PYTHON PACKAGES [OPTIONS]     called by run_all.sh, which exports PYTHONPATH
#
# Install PACKAGES with pip for PYTHON. Where that is the .venv's and does not work, make .venv first: with conda, mamba
# or micromamba where there is one, else with Python's venv. OPTIONS are those of run_all.sh, refused before that.

set -u
python="$1" packages="$2" root="$(cd "$(dirname "$0")/.." && pwd -P)" base=""
shift 2
venv="$root/.venv" log="$root/runs/install.log" lock="$root/runs/installing"

say() { printf '%s\n' "$*" >&2; }

fail() { # REASON: print the end of the log, the reason and one hint
  tail -n 12 "$log" >&2
  local hint="The lines above say why."
  if grep -qi "could not find a version\|connection\|resolve host" "$log"; then hint="Is there a network?"; fi
  if grep -qi "no space left\|disk quota" "$log"; then hint="The disk is full: make room, about 8 GB, also in ${TMPDIR:-/tmp}."; fi
  say "[FAIL] $1 $hint"
  say "       The same command continues then. The whole log: $log"
  exit 1
}

installed_torch() { # PYTHON: print the torch and torchvision that it has, fail where there is no torch from 2.11 on
  "$1" -P -c '
import torch; from importlib.metadata import distributions
assert [int(part) for part in torch.__version__.split(".")[:2]] >= [2, 11]
print(*{f"{d.name}=={d.version}" for d in distributions() if d.name in ("torch", "torchvision")})' 2>/dev/null
}

make_environment() {
  local conda specs share=""
  conda="$(command -v conda || command -v mamba || command -v micromamba)"
  if [ -z "$conda$base" ]; then
    say "[FAIL] no Python 3.11 to 3.14 on the PATH, and no conda. Install one, for example from python.org, and try again."
    exit 1
  fi
  rm -rf "$venv"
  say "Making the environment $venv with ${conda:-$base}."
  if [ -n "$conda" ]; then
    specs="$(sed -n 's/^  - \(p[a-z]*=[0-9.]*\).*/\1/p' "$root/environment.yml")" # python and pip
    # shellcheck disable=SC2086  # one word per package
    "$conda" create --yes --prefix "$venv" --channel conda-forge $specs >>"$log" 2>&1 && return
    [ -n "$base" ] || fail "$conda could not make $venv."
    say "$conda failed (see $log); using $base instead."
    rm -rf "$venv"
  fi
  if installed_torch "$base" >/dev/null; then share=--system-site-packages; fi
  "$base" -m venv $share "$venv" >>"$log" 2>&1 || fail "$base could not make $venv."
}

for name in python3 python3.14 python3.13 python3.12 python3.11; do # newer ones have no ready-made packages of our pins
  if "$name" -c 'import sys; assert (3, 11) <= sys.version_info < (3, 15)' 2>/dev/null; then base="$name"; break; fi
done
if [ -n "$base" ] && [ $# -gt 0 ] && [ "$*" != --test ]; then
  "$base" -P -c 'import sys; from lib.run import parse; parse(sys.argv[1:])' "$@" || exit
fi
mkdir -p "$root/runs" && : >>"$log" || { say "[FAIL] $root/runs is not writable."; exit 1; }

# One process installs at a time. The lock is a link to the number of its process: made in one step, also on macOS.
until ln -s $$ "$lock" 2>/dev/null; do
  if ! kill -0 "$(readlink "$lock")" 2>/dev/null; then rm -f "$lock"; continue; fi
  [ -n "${told:-}" ] || say "Another run_all.sh is installing; waiting for it. (If there is none, delete $lock.)"
  told=yes
  sleep 2
done
trap 'rm -f "$lock"' EXIT
trap 'say "Stopped. The same command continues the installation."; exit 130' INT TERM HUP
: >"$log"

if [ "$python" = "$venv/bin/python" ] && ! "$python" -m pip --version >/dev/null 2>&1; then make_environment; fi
# A torch that is there stays: where the accelerator's software is fixed, another one would not work.
if torch="$(installed_torch "$python")"; then packages="$torch $(printf '%s\n' $packages | grep -v '^torch')"; fi
say "Installing $(set -- $packages; echo $#) packages, up to 3 GB to fetch the first time. Log: $log"
# shellcheck disable=SC2086  # one word per package
"$python" -m pip install --no-input --disable-pip-version-check --progress-bar off $packages >>"$log" 2>&1 || fail "pip failed."
"$python" -P -c 'import torch, torchvision' >>"$log" 2>&1 || fail "torch does not work; delete $venv and try again."
