# Source this with a requirements file: creates .venv at the root, installs the packages and the dense CRF
# (requirements-crf.txt), and puts .venv on the PATH. Installed packages are not changed. Then, with STEPS set,
# "step TITLE" prints a heading such as "== step 3 of 9, 2:05 so far: TITLE". With DRY_RUN set, nothing is installed
# for a script with HAS_DRY_RUN, which prints its commands; any other one ends.
# A script that gets a signal ends the stage that runs, and waits for it: a trainer saves first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -n "${DRY_RUN:-}" ]; then
    [ -z "${HAS_DRY_RUN:-}" ] || return 0
    echo "DRY_RUN: $0 cannot print its commands: leave the variable out" >&2
    exit 1
fi
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "$("$PYTHON" --version) is too old: Python 3.10 or newer is needed (PYTHON=/path/to/python3 chooses one)" >&2
    exit 1
}
if [ ! -x .venv/bin/python ]; then
    echo "creating $PWD/.venv and installing $1 and requirements-crf.txt: about 6 GB on disk, most of it the CUDA build of
torch; this takes minutes, once. For the CPU build (see pytorch.org), stop here, remove .venv, and install torch and
torchvision into a new one (python3 -m venv .venv) before you run this again." >&2
    "$PYTHON" -m venv .venv
fi
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
install -r "$1"
if ! .venv/bin/python -c 'import pydensecrf.densecrf' 2>/dev/null; then
    command -v c++ >/dev/null || command -v g++ >/dev/null || {
        echo 'a C++ compiler (such as g++) is needed to build the dense CRF, requirements-crf.txt; without it the stages
work with --crf_iteration 0 (. .venv/bin/activate)' >&2
        exit 1
    }
    # pydensecrf2 pins a Cython that fails on Python 3.13 but builds with Cython 3, without pip's build isolation.
    install 'cython>=3.0.11,<4' setuptools wheel
    install --no-build-isolation -r requirements-crf.txt
fi
export PATH="$PWD/.venv/bin:$PATH"
export PUZZLE_CAM_RECIPE=$$  # whose end, even by kill -9, ends the stage that runs
# A stage runs in the background: bash would hear a signal only after the stage, or end and leave it running.
python() {
    command python "$@" <&0 &
    wait $!
}
end_all() {
    trap '' TERM INT HUP
    kill $(jobs -p) 2>/dev/null || true
    wait
    exit "$1"
}
trap 'end_all 129' HUP
trap 'end_all 130' INT
trap 'end_all 143' TERM
STEP=0
step() {
    STEP=$((STEP + 1))
    printf '\n== step %d of %d, %d:%02d so far: %s\n' "$STEP" "$STEPS" $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}
