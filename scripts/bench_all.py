"""How fast gpuprof is, as one table of ratios from one run: beside peers, and beside an older build.

Each benchmark runs in a process of its own, one after another; together they take some tens of minutes, best on a quiet
machine. Exits with 1 if a target is missed, with 2 if a benchmark fails.

    scripts/bench_all.py --markdown docs/speed.md
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

from side_by_side import ROOT, Ratio, cpu_name, parser

BENCHMARKS = (
    "bench_count.py", "bench_start.py", "bench_show.py", "bench_trace.py", "bench_record.py", "bench_profile.py",
    "bench_report.py", "bench_million.py",
)  # fmt: skip


def markdown(rows: list[Ratio]) -> str:
    """The rows as a table."""
    lines = ["| work | figure | held against | ratio | target | |", "|---|--:|---|--:|--:|---|"]
    for row in rows:
        target = "" if row.target is None else f"{row.target:g}"
        verdict = "" if row.target is None else "met" if row.met else "**missed**"
        figure, other = (f"{value:.3g} {row.unit}" for value in (row.here, row.there))
        lines.append(f"| {row.work} | {figure} | {row.against}: {other} | {row.ratio:.3f} | {target} | {verdict} |")
    return "\n".join(lines)


def page(rows: list[Ratio], base: str, rounds: int) -> str:
    """The table with what it is and where it comes from."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pandas", "plotly", "gpuprof"))
    return f"""# Speed

`python scripts/bench_all.py --rounds {rounds} --markdown docs/speed.md`, on a CPU ({cpu_name()}), {date.today()}.
{versions}, Python {platform.python_version()}. This page is written by that command; each of
`scripts/bench_*.py` measures its rows alone.

Both figures of a row are of one run, in which all take turns: the least of the rounds, of processor time where the unit
is s and nothing else is said; of what is added to a step the median of the rounds. A ratio below 1 is in gpuprof's
favour; a target is the most that it may be. {base} is a commit before gpuprof was worked on for speed; it did less (no
verdict, fewer tables).

{markdown(rows)}
"""


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as a page")
    made.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="SCRIPT", help="these alone")
    asked = made.parse_args()
    rows: list[Ratio] = []
    failed = []
    for script in BENCHMARKS:
        if asked.only and script not in asked.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "rows.json"
            common = ["--rounds", str(asked.rounds), "--base", asked.base, "--json", str(found)]
            print(f"{script} ...", file=sys.stderr, flush=True)
            command = [sys.executable, ROOT / "scripts" / script, *common]
            status = subprocess.run(command, stdout=sys.stderr).returncode
            if status in (0, 1) and found.exists():
                rows += [
                    Ratio(**{name: row[name] for name in Ratio.__dataclass_fields__})
                    for row in json.loads(found.read_text())
                ]
            else:
                failed.append(script)
    print(markdown(rows))
    if asked.markdown is not None:
        asked.markdown.write_text(page(rows, asked.base, asked.rounds))
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 2
    return int(not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
