#!/usr/bin/env bash
# transformers reads the source of all its models twice in one import, though the function that does so is cached.
#
# Expected: `import transformers` looks through the 560 folders of transformers/models for names to offer, and `transformers.models`, which the
#   first class of a model imports, asks the same function for the same folders: 560 hits, for it is under functools.lru_cache.
# Happens: an lru_cache without arguments keeps 128 results. Each folder has been pushed out by the 128 after it when it is asked for again, so
#   there is no hit at all, and as many misses a second time: every file of every model is opened and searched line by line twice.
#   A cache of 1,024 in its place has a hit for the one folder that is asked for, and looks into none again.
# Who meets it: whoever waits for `from transformers import LlamaForCausalLM`: the second look is a quarter of a second of processor time.
# Versions: transformers 5.24.0, Python 3.11; without torch; seen on 2026-11-29.
# Source: transformers/utils/import_utils.py, create_import_structure_from_path; transformers/models/__init__.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check transformers==5.24.0 2>/dev/null
venv/bin/python -W ignore - <<'PYTHON' 2>&1 | grep -v "PyTorch was not found"
import time
from functools import lru_cache
from pathlib import Path

import transformers
from transformers.utils.import_utils import create_import_structure_from_path as structure

print("transformers", transformers.__version__)
first = structure.cache_info()
start = time.process_time()
import transformers.models

second_s = time.process_time() - start
both = structure.cache_info()
print("after import transformers:       ", first)
print("after import transformers.models:", both, f"{second_s:.2f} s of processor time")
assert first.maxsize == 128 and first.hits == both.hits == 0
assert first.misses > 4 * 128 and first.misses <= both.misses - first.misses <= first.misses + 1

# the same function under a cache that is large enough, asked twice
module = structure.__wrapped__.__globals__
large = module["create_import_structure_from_path"] = lru_cache(1024)(structure.__wrapped__)
models = Path(transformers.__file__).parent / "models"
for _ in range(2):
    large(models)
print("twice with a cache of 1024:      ", large.cache_info())
assert large.cache_info().hits == 1 and large.cache_info().misses == large.cache_info().currsize
PYTHON
