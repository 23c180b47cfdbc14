"""What the command line takes to start, and to end: whole processes in seconds of processor time. No GPU needed.

Counting a small model, which is imports for the most part, is held against the imports alone; a help and a wrong
argument against a process that imports typer. Each also against an older build, than which none may be slower.
"""

from __future__ import annotations

import sys

from side_by_side import ROOT, Ratio, finish, least_s, parser, unpacked

IMPORTS = ["-c", "import torch; from transformers import LlamaForCausalLM"]
TYPER = ["-c", "import typer"]
COUNT = {"count smollm2-135m": ["count", "smollm2-135m"]}
LIGHT = {
    "--help": ["--help"],
    "profile --help": ["profile", "--help"],
    "show --help": ["show", "--help"],
    "profile no-such-model": ["profile", "no-such-model"],
}
ENDS_WITH = {"profile no-such-model": 2}
COUNT_LIMIT = 1.08
"""Counting over the imports of what it needs."""
NO_SLOWER = 1.05
"""Over the older build; what is above 1 is how much the least of some rounds varies."""


def main() -> int:
    asked = parser(__doc__).parse_args()
    with unpacked(asked.base) as base:
        commands, statuses = {"imports": (IMPORTS, ROOT), "typer": (TYPER, ROOT)}, dict[str, int]()
        for name, arguments in (COUNT | LIGHT).items():
            for state, source in (("here", ROOT), ("base", base)):
                commands[f"{name}, {state}"] = (["-m", "gpuprof", *arguments], source)
                statuses[f"{name}, {state}"] = ENDS_WITH.get(name, 0)
        seconds = least_s(commands, asked.rounds, statuses)
    rows = []
    for name in COUNT | LIGHT:
        here, there = seconds[f"{name}, here"], seconds[f"{name}, base"]
        if name in COUNT:
            rows.append(Ratio(f"gpuprof {name}", "python -c 'import torch; from transformers import LlamaForCausalLM'",
                              here, seconds["imports"], target=COUNT_LIMIT))  # fmt: skip
        else:
            rows.append(Ratio(f"gpuprof {name}", "python -c 'import typer'", here, seconds["typer"]))
        rows.append(Ratio(f"gpuprof {name}", f"the build of {asked.base}", here, there, target=NO_SLOWER))
    return finish(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
