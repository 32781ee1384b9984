#!/usr/bin/env bash
# All tests, in an environment of its own:  bash tools/test.sh [options of pytest]
source "$(dirname "$0")/environment.sh" requirements-dev.txt
ruff check .
ruff format --check .
python -m pytest -n 2 "$@"
