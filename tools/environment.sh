# Source this with a requirements file: creates .venv at the root, installs the packages and puts it on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "$("$PYTHON" --version) is too old: Python 3.10 or newer is needed (PYTHON=/path/to/python3 chooses one)" >&2
    exit 1
}
command -v c++ >/dev/null || command -v g++ >/dev/null || {
    echo 'a C++ compiler (g++) is needed to build pydensecrf2' >&2
    exit 1
}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
# pydensecrf2 pins a Cython that does not support Python 3.13 but builds with Cython 3, without pip's build isolation.
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'cython>=3.0.11,<4' setuptools wheel
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -r "$1"
export PATH="$PWD/.venv/bin:$PATH"
