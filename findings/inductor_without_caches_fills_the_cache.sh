#!/usr/bin/env bash
# TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 makes the folder of the cache grow with every run.
#
# Expected: with all caches disabled nothing that a process compiled is of use to another, so it compiles in a folder of its own that
#   is deleted with it, and the folder of the cache stays as it was.
# Happens: each compilation, a forward and its backward being two, makes a tmp* folder with sources and libraries in
#   TORCHINDUCTOR_CACHE_DIR, and nothing deletes it, not the end of the process either. No later process reads it. So here a
#   second run doubles the folder, while with the caches a second run adds nothing.
# Who meets it: whoever disables the caches for measurements of compilation, in tests or in a service that starts often.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: torch/_inductor/compile_fx.py, with_fresh_cache_if_config
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>/dev/null
cat > run.py <<'PYTHON'
import torch

model = torch.compile(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8)))
model(torch.ones(8, 8)).sum().backward()
PYTHON
venv/bin/python -c 'import torch; print("torch", torch.__version__)'
for disabled in 0 1; do
    mkdir "$disabled"
    for run in 1 2; do
        TORCHINDUCTOR_FORCE_DISABLE_CACHES=$disabled TORCHINDUCTOR_CACHE_DIR="$folder/$disabled" venv/bin/python -W ignore run.py
        printf 'caches disabled %d, after run %d: %2d tmp folders, %2d compiled libraries\n' "$disabled" "$run" \
            "$(find "$disabled" -maxdepth 1 -name 'tmp*' | wc -l)" "$(find "$disabled" -name '*.so' | wc -l)" | tee -a out
    done
done
mapfile -t libraries < <(sed 's/.*folders, *\([0-9]*\) .*/\1/' out)
[ "${libraries[0]}" -gt 0 ] && [ "${libraries[0]}" = "${libraries[1]}" ]
[ "${libraries[3]}" = $((2 * libraries[2])) ]
grep -q "disabled 0, after run 2:  0 tmp" out
grep -q "disabled 1, after run 1:  2 tmp" out
grep -q "disabled 1, after run 2:  4 tmp" out
echo "as described"
