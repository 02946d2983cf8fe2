#!/usr/bin/env bash
# Builds the virtual environment .venv of this checkout: torch, mmcv's operators, mmdet, Headway.
# Safe to run again at any time: finished steps are skipped, a compilation that was cut short continues.
#
#   PYTHON         the interpreter to use (3.10 to 3.12; default: the first of python3.12, 3.11, 3.10, python3 that fits)
#   HEADWAY_CACHE  where the compiled mmcv wheel is kept between checkouts (default: ~/.cache/headway)
#   HEADWAY_MMCV_WHEEL  a prebuilt onedl-mmcv wheel to install instead of compiling
#   HEADWAY_TORCH  another torch requirement (default: torch==2.13.0), for example a CUDA build
set -euo pipefail
cd "$(dirname "$0")/.."

torch_requirement=${HEADWAY_TORCH:-torch==2.13.0}
mmcv_version=2.3.6
mmengine_version=0.10.12
mmdet_version=3.5.1
cache=${HEADWAY_CACHE:-$HOME/.cache/headway}
say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || die "PYTHON=$PYTHON must be Python 3.10 to 3.12, but is '$("$PYTHON" --version 2>&1)'"
    command -v "$PYTHON"; return
  fi
  for candidate in python3.11 python3.12 python3.10 python3 python; do
    if command -v "$candidate" >/dev/null && fits "$candidate"; then command -v "$candidate"; return; fi
  done
  die "no Python 3.10 to 3.12 found; install one or name it: PYTHON=/path/to/python make ..."
}

mkdir -p "$cache" || die "cannot write the cache folder $cache; set HEADWAY_CACHE to another one"
if command -v flock >/dev/null; then
  exec 9>.setup.lock
  flock -n 9 || { say "another set-up of this checkout is running, waiting for it"; flock 9; }
fi

stamp=.venv/.headway-setup
wanted=$( (cat pyproject.toml deploy/setup.sh; echo "$torch_requirement ${HEADWAY_MMCV_WHEEL:-}") | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

# A virtual environment names its own path, so a moved or copied one does not work.
if [ -d .venv ] && ! fits .venv/bin/python; then
  say "removing an unusable .venv"; rm -rf .venv
fi
if [ ! -d .venv ]; then
  python=$(find_python)
  say "creating .venv with $("$python" --version)"
  "$python" -m venv .venv || die "cannot create .venv (on Debian and Ubuntu: install python3-venv)"
fi
python=.venv/bin/python
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

say "installing $torch_requirement and the build tools"
pip install --quiet --upgrade "pip>=23" "setuptools>=80,<81" wheel packaging ninja psutil "numpy==2.2.6" cython
pip install --quiet "$torch_requirement"

if "$python" -c "import torch, mmcv, mmcv._ext; assert mmcv.__version__ == '$mmcv_version'" 2>/dev/null; then
  say "mmcv $mmcv_version with its operators is installed"
elif [ -n "${HEADWAY_MMCV_WHEEL:-}" ]; then
  say "installing the prebuilt $HEADWAY_MMCV_WHEEL"
  pip install --quiet "$HEADWAY_MMCV_WHEEL"
else
  # An operator library fits one torch and one Python, so the cache is kept by both.
  key=$("$python" -c "import sys, torch; print(f'mmcv-$mmcv_version-torch-{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}'.replace('+', '-'))")
  wheels=$cache/wheels/$key
  if ! ls "$wheels"/onedl_mmcv-*.whl >/dev/null 2>&1; then
    command -v c++ >/dev/null || command -v g++ >/dev/null || die "a C++ compiler is needed (on Debian and Ubuntu: install build-essential)"
    say "compiling mmcv's operators: about 20 minutes on two cores, once for this machine"
    say "(78 files; a cut-short compilation continues where it stopped; the log is $cache/build/$key/build.log)"
    source=$cache/build/$key
    mkdir -p "$source" "$wheels"
    exec 8>"$source/.lock"
    if command -v flock >/dev/null; then flock 8; fi
    if ! ls "$wheels"/onedl_mmcv-*.whl >/dev/null 2>&1; then
      if [ ! -f "$source/src/setup.py" ]; then
        rm -rf "$source/sdist" "$source/unpacking"
        pip download --quiet --no-deps --no-binary :all: --no-build-isolation -d "$source/sdist" "onedl-mmcv==$mmcv_version"
        mkdir -p "$source/unpacking"
        tar -xzf "$source"/sdist/onedl_mmcv-*.tar.gz -C "$source/unpacking" --strip-components=1
        mv "$source/unpacking" "$source/src"
      fi
      (
        while sleep 30; do
          say "  compiled $(find "$source/src/build" -name '*.o' 2>/dev/null | wc -l) of 78 files"
        done
      ) & ticker=$!
      trap 'kill $ticker 2>/dev/null || true' EXIT
      MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)} MMCV_WITH_OPS=1 PATH="$PWD/.venv/bin:$PATH" \
        "$python" -m pip wheel --no-deps --no-build-isolation -w "$wheels.part" "$source/src" >>"$source/build.log" 2>&1 \
        || die "compiling mmcv failed; the end of $source/build.log: $(tail -n 20 "$source/build.log")"
      kill "$ticker" 2>/dev/null || true
      mv "$wheels.part"/onedl_mmcv-*.whl "$wheels/"
      rm -rf "$wheels.part" "$source/src"
    fi
    exec 8>&-
  fi
  say "installing mmcv from $wheels"
  pip install --quiet "$wheels"/onedl_mmcv-*.whl
fi
"$python" -c "import torch, mmcv._ext" || die "mmcv's operators do not load; remove $cache/wheels and try again"

say "installing mmengine, mmdet and Headway"
pip install --quiet "onedl-mmengine==$mmengine_version"
pip install --quiet --no-build-isolation "onedl-mmdetection==$mmdet_version"
pip install --quiet --no-build-isolation -e ".[dev]"
pip check || die "the installed packages do not fit together"
printf '%s' "$wanted" >"$stamp"
say "done: .venv is ready"
