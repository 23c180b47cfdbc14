#!/usr/bin/env bash
# The tests that touch torch and transformers, under other versions than the tested ones, each in its own environment.
#   scripts/test_versions.sh [oldest] [image] [newest]   all three unless some are named
set -euo pipefail
cd "$(dirname "$0")/.."

tests=(tests/workload tests/passes tests/theory tests/analysis tests/test_public_api.py tests/test_main_job.py)
at_once=(--numprocesses auto --maxprocesses 4 --dist loadfile)
version() { "$1/bin/python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$2"; }

[ $# -gt 0 ] || set -- oldest image newest
failed=()
for name in "$@"; do
    case $name in
    oldest) versions=("$(sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)") ;;
    image) versions=(5.17.0 2.11.0) ;; # what the images of GPU nodes bring
    newest) versions=(newest) ;;
    *)
        echo "no versions named $name: known are oldest, image, newest" >&2
        exit 2
        ;;
    esac
    scripts/setup.sh "${versions[@]}"
    environment=.venv-${versions[0]}
    transformers=$(version "$environment" transformers)
    if [ "$name" = newest ] && [ "$transformers" = "$(version .venv transformers)" ]; then
        echo "newest: transformers $transformers is the tested one; scripts/test.sh runs these tests with it"
        continue
    fi
    echo "$name: torch $(version "$environment" torch), transformers $transformers"
    "$environment/bin/python" -m pytest "${at_once[@]}" "${tests[@]}" || failed+=("$name")
done
[ ${#failed[@]} = 0 ] || {
    echo "failed with the versions: ${failed[*]}" >&2
    exit 1
}
