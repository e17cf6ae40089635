#!/usr/bin/env bash
# From a fresh clone to a served model and its first picture:
#
#     bash scripts/start.sh ["a prompt"] [--port 8000]
#
# Needs Python 3.11 to 3.13 and nothing else. Serves until Ctrl-C.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
. scripts/install.sh
install requirements.txt
exec "$PYTHON" -m scripts.start --install-seconds "$INSTALL_SECONDS" "$@"
