#!/usr/bin/env bash
# Open README.ipynb in JupyterLab: bash scripts/lab.sh [jupyter lab arguments]
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
. scripts/install.sh
install requirements.txt
[ "$(id -u)" != 0 ] || set -- --allow-root "$@" # of a container, say; it listens on this machine alone
PATH="$PWD/.venv/bin:$PATH" exec "$PYTHON" -m jupyterlab --ip=127.0.0.1 "$@" README.ipynb
