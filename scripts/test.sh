#!/usr/bin/env bash
# Lint, types and tests. Does all set-up on a fresh machine. Arguments go to pytest: scripts/test.sh -k counting
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
