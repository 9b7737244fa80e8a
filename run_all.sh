#!/usr/bin/env bash
# Use the active environment if it has all packages, else install them into .venv; then run the notebooks: --help
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh run_all.sh
set -u
root="$(dirname -- "$(readlink -f -- "$0")")" python="" base="" torch=""
venv="$root/.venv"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
case " $* " in *" --test "*) test=yes ;; *) test="" ;; esac

group() { sed -n "/$1/,/$2/s/^      - \([^ ]*\).*/\1/p" "$root/environment.yml"; }
packages="$(group "- pip:" "test tools")"
if [ -n "$test" ]; then packages+=" $(group "test tools" "ray tools")"; fi
case " $*" in *" --ray"*) packages+=" $(group "ray tools" end)" ;; esac

has() { # PYTHON: is it 3.11 or newer, with all packages? (a build such as 2.15.0+cpu counts as 2.15.0)
  # shellcheck disable=SC2086  # one word per package, here and below
  "$1" -P -c '
import sys; from importlib.metadata import version
from packaging.requirements import Requirement; from packaging.version import Version
for package in map(Requirement, sys.argv[1:]):
    assert package.specifier.contains(Version(version(package.name)).base_version)' $packages 2>/dev/null
}
for path in "${VIRTUAL_ENV:-/-}" "${CONDA_PREFIX:-/-}" "$venv"; do
  if has "$path/bin/python"; then python="$path/bin/python"; break; fi
done
for name in ${python:+"$python"} python3 python3.14 python3.13 python3.12 python3.11; do
  if "$name" -c 'import sys; assert (3, 11) <= sys.version_info < (3, 15)' 2>/dev/null; then base="$name"; break; fi
done
if [ -n "$base" ]; then # any Python shows the help, or what is wrong with the options; 7: neither
  "$base" -P -c 'import sys; from lib.companion import parse; parse(sys.argv[1:]); sys.exit(7)' "$@"
  status=$?; [ $status = 7 ] || exit $status
fi

if [ -z "$python" ]; then
  python="$venv/bin/python"
  # A torch that is there stays: where the accelerator's software is fixed, another one would not work.
  torch="$("$base" -P -c 'import sys, torch; own = torch.__version__; assert sys.prefix == sys.base_prefix
assert tuple(map(int, own.split(".")[:2])) >= (2, 11); print(f"torch=={own}")' 2>/dev/null)"
  "$python" -c "" 2>/dev/null || "$base" -m venv --clear ${torch:+--system-site-packages} "$venv" >/dev/null 2>&1 ||
    "$base" -m venv --clear --without-pip ${torch:+--system-site-packages} "$venv" >/dev/null 2>&1 ||
    uv venv --quiet --python ">=3.11,<3.15" "$venv" 2>/dev/null
  if "$python" -m pip --version >/dev/null 2>&1; then install=("$python" -m pip install)
  elif "$base" -m pip --python "$python" --version >/dev/null 2>&1; then install=("$base" -m pip --python "$python" install)
  elif uv --version >/dev/null 2>&1; then install=(uv pip install --python "$python") torch="" # which uv does not see
  else
    rm -rf "$venv"
    echo "[FAIL] Install Python 3.11 to 3.14 with venv and pip (Debian: apt install python3-venv), or uv." >&2; exit 1
  fi
  echo "Installing $(wc -w <<<"$packages") packages into $venv: about 6 GB, once."
  # shellcheck disable=SC2046
  "${install[@]}" $(printf '%s\n' $packages | sed "s/^torch>=.*/${torch:-&}/") ||
    { echo "[FAIL] The lines above say why. The same command continues." >&2; exit 1; }
fi
[ -n "$test" ] || exec "$python" -P -m lib.companion.run "$@"
cd "$root" && for tool in "ruff check lib tests notebooks" mypy pytest; do "$python" -m $tool || failed=1; done; exit "${failed:-0}"
