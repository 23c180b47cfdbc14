#!/usr/bin/env bash
# Lint, types and tests. Does all set-up on a fresh machine. Arguments go to pytest: scripts/test.sh -k counting
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
# the run store is tested on a PostgreSQL server too, one that the tests start themselves
server() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; }
if ! server && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt() { DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq "$@" </dev/null >/dev/null 2>&1; }
    { apt update && apt install --yes --no-install-recommends postgresql; } || true
fi
server || echo "no PostgreSQL server here and none could be installed: its tests of the run store are skipped" >&2
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
