"""The shell of docs/ci.md, run with commands that only note how they were called."""

import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/ci.md"
FAKES = """
srun() { "$@"; }
gpuprof() { if [ "$1" = check ]; then echo "the verdict" > verdict.md; return "$STATUS"; fi; }
mail() { echo "mail $2 to $3: $(cat)"; }
"""


@pytest.mark.parametrize(
    ("status", "said", "left_with"),
    [
        (0, "", 0),
        (1, "mail slower to team: the verdict\n", 0),
        (2, "mail not judged to team: see slurm-7.out\n", 2),
        (3, "inconclusive: look at verdict.md\n", 0),
        (137, "mail not judged to team: see slurm-7.out\n", 2),  # killed
    ],
)
def test_a_night_under_slurm_is_told_by_its_status(status, said, left_with, tmp_path):
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text(), re.DOTALL)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_JOB_ID": "7", "STATUS": str(status)}
    done = subprocess.run(
        ["bash", "-c", FAKES + script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr, done.returncode) == (said, "", left_with)
