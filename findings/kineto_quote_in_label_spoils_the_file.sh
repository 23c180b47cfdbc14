#!/usr/bin/env bash
# A double quote in the name of a record_function makes the whole exported trace invalid JSON.
#
# Expected: export_chrome_trace escapes what JSON needs escaped, so that record_function('load "train"') is an event of that name.
# Happens: the quotes are written as they are, and no JSON reader takes the file: not one event of it can be had, and the job has
#   to be recorded again. A backslash becomes a slash, and a line feed is dropped, so that somebody has thought of those.
# Who meets it: whoever labels steps, requests or files with names that come from data, and opens the trace in Perfetto or in
#   any program.
# Versions: torch 2.13.0, CPU; seen on 2026-11-28.
# Source: libkineto/src/output_json.cpp, sanitizeStrForJSON
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
venv/bin/python - <<'PYTHON' 2>/dev/null
import json

import torch
from torch.profiler import ProfilerActivity, profile, record_function

print("torch", torch.__version__)


def exported(name):
    """The name of the label in the exported file, or why the file cannot be read."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function(name):
            torch.ones(2)
    profiler.export_chrome_trace("trace.json")
    try:
        with open("trace.json") as file:
            events = json.load(file)["traceEvents"]
    except json.JSONDecodeError as error:
        return f"no JSON: {error}"
    return next(event["name"] for event in events if event.get("cat") == "user_annotation")


names = ["load train", "load\\train", "load\ntrain", 'load "train"']
found = {name: exported(name) for name in names}
for name, what in found.items():
    print(f"{name!r}: {what!r}")
assert found["load train"] == "load train"
assert found["load\\train"] == "load/train"
assert found["load\ntrain"] == "loadtrain"
assert found['load "train"'].startswith("no JSON: Expecting ',' delimiter")
PYTHON
