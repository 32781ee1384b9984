#!/usr/bin/env bash
# All tests, in .venv, which it creates:  bash tools/test.sh [options of pytest]
# The tests of tools.report in a browser are skipped unless there is a Chromium (apt-get install chromium).
source "$(dirname "$0")/environment.sh" requirements-dev.txt
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq chromium >/dev/null
    else
        echo 'no Chromium: the tests in a browser are skipped (Debian and Ubuntu: apt-get install chromium)' >&2
    fi
fi
# Tests write the outputs of all stages hundreds of times, 100 MB each: in memory if there is room.
if [ -z "${TMPDIR:-}" ] && [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 4000000 ] 2>/dev/null; then
    export TMPDIR=/dev/shm
fi
ruff check .
ruff format --check .
command python -m pytest -n 2 --dist worksteal --durations=10 "$@"
