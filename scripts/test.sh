#!/usr/bin/env bash
# Everything that has to hold: bash scripts/test.sh [pytest arguments]
# With arguments (a file, -k name, ...) pytest gets them, and the checks of style and types are left out.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/install.sh
install requirements.txt tests/requirements.txt
export PATH="$PWD/.venv/bin:$PATH"
if [ $# -eq 0 ]; then
    ruff format --check .
    ruff check .
    mypy
fi
exec python -m pytest "$@"
