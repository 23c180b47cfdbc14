"""The picture in the README: the report page of a committed run, as a browser shows it, in docs/report.png.

Needs chromium (or google-chrome) and the extra `report`. python scripts/readme_picture.py [RUN]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/report.png"
WIDTH, HEIGHT = 1200, 1150
LARGEST_BYTES = 200_000


def main() -> int:
    run = sys.argv[1] if sys.argv[1:] else str(ROOT / "examples/h200-train.json.gz")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no chromium and no google-chrome here", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "report.html", Path(folder) / "report.png"
        subprocess.run([sys.executable, "-m", "gpuprof", "report", run, "-o", str(page)], check=True, cwd=ROOT)
        looks = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=15000"]
        size = f"--window-size={WIDTH},{HEIGHT}"
        subprocess.run([browser, *looks, size, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True)
        Image.open(shot).convert("RGB").quantize(128).save(PICTURE, optimize=True)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")
    return 0 if PICTURE.stat().st_size < LARGEST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
