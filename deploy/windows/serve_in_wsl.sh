#!/usr/bin/env bash
# Serves from inside WSL2, for start.ps1; every argument is the server's own.
#
# The packages go into the Linux home, where files are fast, and are installed again when
# requirements.txt has changed.
set -euo pipefail
cd "$(dirname "$0")/../.."

home=${XDG_DATA_HOME:-$HOME/.local/share}/transformers-openai-api
if ! cmp --silent requirements.txt "$home/requirements.txt"; then
  mkdir -p "$home"
  if ! python3 -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Python 3.11 or newer with its venv module is needed here: sudo apt install python3-venv" >&2
    exit 78
  fi
  python3 -m venv "$home/venv"
  "$home/venv/bin/python" -m pip install --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$home/requirements.txt"
fi
exec "$home/venv/bin/python" launcher.py "$@"
