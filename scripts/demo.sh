#!/usr/bin/env bash
# Profiles a real model, forward and backward, on the GPU where there is one and on the CPU elsewhere.
# Does all set-up on a fresh machine. Arguments go to 'gpuprof profile': scripts/demo.sh gpt2 --batch-size 2
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
if [ $# -eq 0 ]; then
    set -- smollm2-135m --output demo-run.json.gz
fi
exec .venv/bin/gpuprof profile "$@"
