#!/usr/bin/env bash
# Lint, types and tests. Does all set-up on a fresh machine. Arguments go to pytest: scripts/test.sh -k counting
# Without any the whole suite runs, in up to four processes at once.
#   scripts/test.sh --newest ...          with the newest of everything that pyproject.toml allows, but for torch
#   scripts/test.sh --versions [NAME ...] the tests that touch torch and transformers alone, under each of the
#                                         versions oldest, image (what the image of a GPU node has) and newest
set -euo pipefail
cd "$(dirname "$0")/.."

environment=.venv
case "${1:-}" in
--versions)
    shift
    exec scripts/test_versions.sh "$@"
    ;;
--newest)
    shift
    scripts/setup.sh newest
    environment=.venv-newest
    ;;
*)
    scripts/setup.sh
    ;;
esac
# the run store is tested on a PostgreSQL server too, one that the tests start themselves
server() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; }
if ! server && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt() { DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq "$@" </dev/null >/dev/null 2>&1; }
    { apt update && apt install --yes --no-install-recommends postgresql; } || true
fi
server || echo "no PostgreSQL server here and none could be installed: its tests of the run store are skipped" >&2
# an environment upon .venv has a newer ruff of its own, or that of .venv
PATH=$PWD/$environment/bin:$PWD/.venv/bin:$PATH
ruff check .
ruff format --check .
python -m mypy
[ $# -gt 0 ] || set -- --numprocesses auto --maxprocesses 4 --dist loadfile
exec python -m pytest "$@"
