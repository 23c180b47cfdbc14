"""The page of a run: its bytes, when a browser first shows it and when it answers, and what making it takes.

Two pages of models of seven billion parameters: one counted alone, and one with its kernels, from a committed run.
Each is made by this build and by an older one. Chromium opens them in turn, each in a new tab of one browser; the
medians are seconds on the clock from the start of the navigation.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Ratio, finish, least_s, parser, unpacked, used

MEASURED = ROOT / "results" / "nvidia-h200" / "2026-11-28" / "runs" / "reference-train.json.gz"
MOST_MB = 2.5
"""Of a page, in millions of bytes."""
LATEST_S = 1.0
"""When a page first shows text."""
LOADS = 9
"""Of each page in the browser, of which the median counts."""
_WHEN = """new Promise(done => new PerformanceObserver((list, self) => {
  const painted = list.getEntriesByName("first-contentful-paint")[0];
  if (!painted) return;
  self.disconnect();
  const told = () => {
    const [page] = performance.getEntriesByType("navigation");
    if (!page.loadEventEnd) return setTimeout(told, 20);
    done(JSON.stringify({paint: painted.startTime, answer: page.domInteractive, whole: page.loadEventEnd}));
  };
  told();
}).observe({type: "paint", buffered: true}))"""
"""When, in milliseconds, it first shows text, its tables answer, and its figures can be drawn."""


class Browser:
    """Chromium without a window, told what to do over its pipe (the Chrome DevTools Protocol)."""

    def __init__(self, program: str, profile: Path) -> None:
        told, self._tell = os.pipe()
        self._hear, heard = os.pipe()
        options = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe"
        # it listens on 3 and answers on 4; a shell takes descriptors of one digit alone, which these are in a script
        self._process = subprocess.Popen(
            ["sh", "-c", f'exec "$0" {options} "--user-data-dir=$1" 3<&{told} 4>&{heard}', program, str(profile)],
            pass_fds=(told, heard),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(told)
        os.close(heard)
        self._number, self._rest = 0, b""

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol returns."""
        self._number += 1
        whose = {"sessionId": session} if session else {}
        message = json.dumps({"id": self._number, "method": method, "params": parameters} | whose)
        os.write(self._tell, message.encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass  # of what happens, which nobody asked for
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._hear, 1 << 16)
            if not read:
                raise RuntimeError("Chromium ended")
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def milliseconds(self, page: Path) -> dict[str, float]:
        """When a page in a new tab first shows text, answers, and is there with all that it draws."""
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        self.call("Page.enable", session)
        self.call("Page.navigate", session, url=page.as_uri())
        found = self.call("Runtime.evaluate", session, expression=_WHEN, awaitPromise=True, returnByValue=True)
        self.call("Target.closeTarget", targetId=tab)
        return json.loads(found["result"]["value"])

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(RuntimeError):
            self.call("Browser.close")
        self._process.wait(30)


def loaded(pages: dict[str, Path], folder: Path) -> dict[str, dict[str, float]]:
    """When each page is how far, in seconds: medians of loads that take turns. Empty without Chromium."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        print("no Chromium: only bytes and the time of making them", file=sys.stderr)
        return {}
    browser = Browser(program, folder / "profile")
    times: dict[str, list[dict[str, float]]] = {name: [] for name in pages}
    for _ in range(LOADS):
        for name, page in pages.items():
            times[name].append(browser.milliseconds(page))
    browser.close()
    return {
        name: {what: statistics.median(one[what] for one in each) / 1e3 for what in each[0]}
        for name, each in times.items()
    }


def rows(base: Path, folder: Path, rounds: int) -> Iterator[Ratio]:
    """All rows, of both runs."""
    counted = folder / "counted.json.gz"
    used(["-m", "gpuprof", "count", "qwen2-7b", "--mode", "train", "-o", counted], base)  # what both builds can read
    sides = {"here": ROOT, "there": base}
    pages = {}
    for of, run in {"7B, counted": counted, "7B, with kernels": MEASURED}.items():
        pages |= {(of, side): folder / f"{side}-{run.name.partition('.')[0]}.html" for side in sides}
        commands = {side: (["-m", "gpuprof", "report", run, "-o", pages[of, side]], sides[side]) for side in sides}
        seconds = least_s(commands, rounds)
        yield Ratio(f"report: making the page, {of}", "base", seconds["here"], seconds["there"], target=1.0)
        size = {side: pages[of, side].stat().st_size / 1e6 for side in sides}
        yield Ratio(f"report: the page, {of}", f"{MOST_MB} MB", size["here"], MOST_MB, "MB", 1.0)
        yield Ratio(f"report: the page, {of}", "base", size["here"], size["there"], "MB")
    when = loaded({" ".join(name): page for name, page in pages.items()}, folder)
    for of in dict.fromkeys(of for of, _ in pages) if when else ():
        here, there = (when[f"{of} {side}"] for side in sides)
        clock = "s on the clock"
        yield Ratio(f"report: first paint, {of}", "1 s", here["paint"], LATEST_S, clock, 1.0)
        yield Ratio(f"report: first paint, {of}", "base", here["paint"], there["paint"], clock)
        yield Ratio(f"report: tables answer, {of}", "base", here["answer"], there["answer"], clock)
        yield Ratio(f"report: figures can be drawn, {of}", "base", here["whole"], there["whole"], clock)


def main() -> int:
    asked = parser(__doc__).parse_args()
    with unpacked(asked.base) as base, tempfile.TemporaryDirectory() as folder:
        return finish(list(rows(base, Path(folder), asked.rounds)), asked)


if __name__ == "__main__":
    sys.exit(main())
