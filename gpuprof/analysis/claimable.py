"""What was counted of the modules of a run, and what another counter would make of it, cause by cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cached_property

from gpuprof import units
from gpuprof.analysis import readings
from gpuprof.analysis.counted import convention_of
from gpuprof.analysis.executed import executed_flops
from gpuprof.analysis.generation import PARTS
from gpuprof.analysis.readings import TOTAL
from gpuprof.late import pd
from gpuprof.paths import ancestors
from gpuprof.record import Record

Option = tuple[str, float]
"""What a claim could be: the cause in words, empty for the count itself, and the figure that follows from it."""


class Figures:
    """Counted figures of modules, and what the tool would make of them, cause by cause."""

    def __init__(self, run: Record, tool: str, claims: pd.DataFrame, places: dict[str, list[str]]) -> None:
        self.run = run
        self.tool = tool
        self.in_causal = convention_of(run) == "causal"
        self.kind = "causal" if self.in_causal else "full"
        self.ours = readings.own_counts(run)
        self.by_rule = readings.readings(run, tool)
        self.heads, self.tables = readings.lookups(run)
        self.covered = readings.covered_params(run, tool)
        meant = Counter(path for paths in places.values() for path in paths)
        self.meant_twice = {path for path, times in meant.items() if times > 1}
        factors = claims.loc[claims["quantity"] == "backward_factor", "value"]
        self.backward_factor = float(factors.iloc[0]) if len(factors) else 2.0
        self._claims, self._places = claims, places
        self._executed = executed_flops(run).to_dict() if run.done("counters") else None
        self._params = self._by_path("params")
        self._trainable = self._by_path("trainable_params")
        self._children: dict[str, list[str]] = {}
        for path in run.tree["module"]:
            if path:
                self._children.setdefault(path.rpartition(".")[0], []).append(path)

    def _by_path(self, column: str) -> dict[str, int]:
        values = dict(zip(self.run.tree["module"], (int(value) for value in self.run.tree[column]), strict=True))
        return values | {TOTAL: values.get("", 0)}

    @property
    def phases(self) -> tuple[str, ...]:
        """What the tool's figures are of: a forward; of FlopCounterMode also of the backward, if one ran."""
        return ("forward", "backward") if self.tool == "torch-counter" else ("forward",)

    @cached_property
    def generated(self) -> dict[str, dict[str, int]]:
        """FLOPs of a generation's phases, causal and full; empty of any other run."""
        phases = [phase for phase in PARTS if (self.run.ops["phase"] == phase).any()]
        return {phase: {kind: self.count([TOTAL], kind, (phase,)) for kind in ("causal", "full")} for phase in phases}

    @cached_property
    def prefill(self) -> Figures | None:
        """Those of a generation without its decoding: a report may be of one forward; None where nothing decodes."""
        decoding = self.run.ops["phase"] == "decode"
        if not decoding.any():
            return None
        estimates = self.run.estimates[self.run.estimates["phase"] != "decode"]
        alone = replace(self.run, ops=self.run.ops[~decoding], estimates=estimates)
        return Figures(alone, self.tool, self._claims, self._places)

    def of(self, paths: list[str], table: readings.Sums, name: str) -> int:
        """Sum over modules, which do not contain each other."""
        return sum(table.get(path, {}).get(name, 0) for path in paths)

    def count(self, paths: list[str], kind: str, phases: tuple[str, ...]) -> int:
        """FLOPs of the phases, of a kind: causal, full, or attention, which is a part of full."""
        return sum(self.of(paths, self.ours, f"{phase} {kind}") for phase in phases)

    def executed(self, paths: list[str], factor: float, phases: tuple[str, ...]) -> int | None:
        """FLOPs of the phases that the GPU executed, or MACs by the factor; None where that is not known."""
        if self._executed is None:
            return None
        flops = [self._executed.get(("" if p == TOTAL else p, phase), 0) for p in paths for phase in phases]
        return None if any(pd.isna(value) for value in flops) else int(sum(flops) * Fraction(factor))

    def both_in(self, tool: str) -> bool:
        """Whether the figures of the tool have the backward in them, and one ran."""
        return tool == "torch-counter" and self.count([TOTAL], "full", ("backward",)) > 0

    def parts(self, paths: list[str], table: readings.Sums, quantity: str) -> dict[str, int]:
        """By how much each cause changes the figure of the full square, the largest first."""
        names = {name for path in paths for name in table.get(path, {}) if name.startswith(f"{quantity} ")}
        changes = {name.partition(" ")[2]: self.of(paths, table, name) for name in names}
        return dict(sorted(((cause, change) for cause, change in changes.items() if change), key=_by_size))

    def words(self, paths: list[str], table: readings.Sums, quantity: str, masked: bool) -> str:
        """The causes by which a figure of the tool differs from the count, empty if it does not."""
        parts = self.parts(paths, table, quantity)
        unit = "MACs" if quantity == "macs" else "FLOPs"
        named = [f"{cause} ({signed(change, unit)})" for cause, change in parts.items()]
        if masked and readings.ATTENTION not in parts:
            named.insert(0, readings.SQUARE)
        return ", ".join(named)

    def params_options(self, paths: list[str], quantity: str) -> list[Option]:
        """What a claim of parameters could be; first what they are."""
        params, trainable = (sum(table[path] for path in paths) for table in (self._params, self._trainable))
        if quantity == "params_frozen":
            return [("", params - trainable)]
        if quantity == "params_own":
            below = sum(self._params[child] for path in paths for child in self._children.get(_root(path), []))
            return [("", max(params - below, 0)), ("tied parameters subtracted twice", params - below)]
        twice = self.tied()
        options: list[Option] = [("", trainable if quantity == "params_trainable" else params)]
        if quantity == "params_of_model":
            options.append(("0: the profiler ran outside the DeepSpeed engine", 0))
        if trainable != params:
            options.append(("trainable parameters only", trainable))
        if self.covered is not None:
            options.append((readings.UNCOVERED, sum(self.covered.get(path, 0) for path in paths)))
        if twice:
            options += [("tied parameters counted twice", options[0][1] + twice)]
            options += [("tied parameters counted only where they are first", options[0][1] - twice)]
        return options

    def tied(self) -> int:
        """Parameters that are in more than one of the root's children."""
        return max(0, sum(self._params[child] for child in self._children.get("", [])) - self._params[""])

    def missing(self, places: dict[str, list[str]]) -> list[str]:
        """Modules that multiply or have parameters, without children, and are not part of what a line stands for.

        A line whose own modules have no lines stands for all that is in it. A report without lines of modules leaves
        none out.
        """
        seen = {path for paths in places.values() for path in paths}
        opened = {parent for path in seen for parent in ancestors(path)[1:]}
        return [
            path for path in self.run.tree["module"]
            if places and path not in self._children
            and (self._params[path] or self.ours.get(path, {}).get("forward full"))
            and not any(place in seen and (place == path or place not in opened) for place in ancestors(path))
        ]  # fmt: skip


def _by_size(item: tuple[str, int]) -> int:
    return -abs(item[1])


def _root(path: str) -> str:
    return "" if path == TOTAL else path


def signed(value: float, unit: str) -> str:
    """A change of a count, with its sign: ``+1.500 GFLOPs``."""
    return ("+" if value > 0 else "-") + units.si(abs(value), unit)
