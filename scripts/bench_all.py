"""Every speed that gpuprof claims, as one table of ratios from one run: beside peers, and beside an older build.

Each row is measured by its own benchmark, in a process of its own, one after another. Wants a quiet machine; takes some
tens of minutes. Exits with 1 if a target is missed, with 2 if a benchmark fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from side_by_side import BASE, ROOT, Ratio, parser

BENCHMARKS = {
    "bench_count.py": [],
    "bench_start.py": [],
    "bench_show.py": [],
    "bench_trace.py": [],
    "bench_record.py": [],
    "bench_profile.py": [],
    "bench_report.py": [],
    "bench_million.py": [],
}
"""Each with the arguments it is run with here."""


def markdown(rows: list[Ratio]) -> str:
    """The rows as a table."""
    lines = ["| work | figure | held against | ratio | target | |", "|---|---|---|---|---|---|"]
    for row in rows:
        target = "" if row.target is None else f"at most {row.target:g}"
        verdict = "" if row.target is None else "met" if row.met else "MISSED"
        figure, other = (f"{value:.4g} {row.unit}" for value in (row.here, row.there))
        lines.append(f"| {row.work} | {figure} | {row.against}: {other} | {row.ratio:.3f} | {target} | {verdict} |")
    return "\n".join(lines)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="SCRIPT", help="these alone")
    asked = made.parse_args()
    rows: list[Ratio] = []
    failed = []
    for script, arguments in BENCHMARKS.items():
        if asked.only and script not in asked.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "rows.json"
            common = ["--rounds", str(asked.rounds), "--base", asked.base, "--json", str(found)]
            print(f"{script} ...", file=sys.stderr, flush=True)
            status = subprocess.run(
                [sys.executable, ROOT / "scripts" / script, *arguments, *common], stdout=sys.stderr
            ).returncode
            if status in (0, 1) and found.exists():
                rows += [
                    Ratio(**{name: row[name] for name in Ratio.__dataclass_fields__})
                    for row in json.loads(found.read_text())
                ]
            else:
                failed.append(script)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    print(f"{date.today()}, commit {commit.strip()} beside {asked.base or BASE}, {asked.rounds} rounds\n")
    print(markdown(rows))
    if asked.json is not None:
        asked.json.write_text(json.dumps([vars(row) | {"ratio": row.ratio, "met": row.met} for row in rows], indent=1))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 2
    return int(not all(row.met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
