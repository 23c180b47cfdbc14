"""Which modules of a model the lines of another counter's report stand for."""

from __future__ import annotations

import re

from gpuprof.late import pd
from gpuprof.paths import unsharded, unwrapped
from gpuprof.record import Record

_CONTAINERS = {"model", "vision_model", "transformer", "base_model", "module"}
_NUMBERED = re.compile(r"\d+-\d+(\.\d+-\d+)*")


def match(claims: pd.DataFrame, run: Record) -> dict[str, list[str]]:
    """Modules of the model that each module of the report stands for; an empty list where there is none.

    A path of the model is taken as it is. Otherwise names have moved between releases of a library, where containers
    such as ``model`` come and go: then paths are compared without them, then by how they end, and the parameters or
    the class must fit. Paths made of numbers (torchinfo without names) are taken in order, by depth, class and
    parameters. A module that no single one equals may still be the sum of what its children stand for.
    """
    modules = claims[claims["module"] != "(total)"].drop_duplicates("module")
    lines = _Lines(claims, modules, run)
    found: dict[str, list[str]] = {}
    position = 0
    for module in lines.classes:
        if _NUMBERED.fullmatch(module):
            place = lines.in_order(module, position)
            found[module] = [] if place is None else [lines.paths[place]]
            position = position if place is None else place + 1
        elif (path := lines.by_name(module)) is not None:
            found[module] = [path]
    for module in reversed(list(lines.classes)):  # children before their parents
        if module not in found:
            found[module] = lines.by_children(module, found)
    return found


class _Lines:
    """The modules of a report, and what of the model they could be."""

    def __init__(self, claims: pd.DataFrame, modules: pd.DataFrame, run: Record) -> None:
        self.classes = dict(zip(modules["module"], modules["class"], strict=True))
        params = claims[claims["quantity"] == "params"].drop_duplicates("module")
        figures = zip(params["value"], params["precision"], strict=True)
        self.claimed = dict(zip(params["module"], figures, strict=True))
        self.paths = list(run.tree["module"])
        self.bare = unwrapped(run.tree["module"], run.tree["class"])
        self.model_classes = dict(zip(self.paths, run.tree["class"], strict=True))
        self.params = dict(zip(self.paths, (int(value) for value in run.tree["params"]), strict=True))
        self.endings: dict[str, list[str]] = {}
        for path in self.paths:
            parts = _key(self.bare[path]).split(".")
            for start in range(len(parts)):
                self.endings.setdefault(".".join(parts[start:]), []).append(path)

    def same_class(self, path: str, module: str) -> bool:
        return not self.classes[module] or _stem(self.model_classes[path]) == _stem(self.classes[module])

    def same_params(self, paths: list[str], module: str) -> bool:
        value, precision = self.claimed[module]
        return abs(sum(self.params[path] for path in paths) - value) <= precision

    def fits(self, path: str, module: str) -> bool:
        return self.same_params([path], module) if module in self.claimed else self.same_class(path, module)

    def by_name(self, module: str) -> str | None:
        if module in self.params and (self.same_class(module, module) or self.fits(module, module)):
            return module
        parts = _key(module).split(".")
        for start in range(len(parts)):
            end = ".".join(parts[start:])
            for path in self.endings.get(end, []):
                if (start or _key(self.bare[path]) == end) and self.fits(path, module):
                    return path
        return None

    def in_order(self, module: str, first: int) -> int | None:
        for place, path in enumerate(self.paths[first:], start=first):
            bare = self.bare[path]
            same_depth = bare.count(".") == module.count(".")
            if bare and same_depth and self.same_class(path, module) and self.fits(path, module):
                return place
        return None

    def by_children(self, module: str, found: dict[str, list[str]]) -> list[str]:
        children = [child for child in self.classes if child and child.rpartition(".")[0] == module]
        parts = list(dict.fromkeys(path for child in children for path in found.get(child, [])))
        if parts and module in self.claimed and self.same_params(parts, module):
            return parts
        if not self.classes[module]:
            return []
        same = [path for path in self.paths if self.same_class(path, module)]
        return same if len(same) == 1 else []


def _key(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _CONTAINERS)


def _stem(name: str) -> str:
    """A class without what releases of a library change of its name."""
    name = re.sub(r"(Flash|Sdpa|Eager)?Attention2?$", "Attention", unsharded(str(name)))
    return re.sub(r"^Pytorch|Activation$", "", name)
