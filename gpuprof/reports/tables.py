"""Reports that are tables: fvcore's `flop_count_table`, torch's FlopCounterMode, torchinfo and torch-summary."""

from __future__ import annotations

import re

from gpuprof.reports.figures import NUMBER, Claim, claim, figure
from gpuprof.reports.printed_models import FVCORE_NOTE
from gpuprof.reports.source import TOTAL, Source, short

FVCORE_HEADER = r"\|\s*module\s*\|.*#flops"
TORCH_HEADER = r"Module\s+FLOP\s+% Total\b"
TORCHINFO_HEADER = r"Layer \(type[^A-Z]*\)\s"

_FVCORE_COLUMNS = {
    "#parameters": "params",
    "#parameters or shape": "params",
    "#flops": "macs",
    "#activations": "activations",
}


def header(source: Source, pattern: str) -> tuple[int, str]:
    """Place of the only line that begins a table, and its text from where the table begins."""
    places = source.find(pattern)
    if len(places) > 1:
        raise source.error("a second report begins here: put every report into a file of its own", places[1])
    line = source.lines[places[0] - 1]
    found = re.search(pattern, line)
    assert found
    return places[0], line[found.start() :]


def read_fvcore_table(source: Source) -> None:
    """What fvcore's `flop_count_table` returns, and the `out_table` of mmengine, which took it over.

    Rows with the shape of a parameter are left out.
    """
    first, title = header(source, FVCORE_HEADER)
    framed = first > 1 and source.lines[first - 2].strip().startswith("+-")  # mmengine's, with a line at its end too
    columns = [cell.strip() for cell in title.strip().strip("|").split("|")]
    prefix = None
    for number, line in enumerate(source.lines[first + 1 :], start=first + 2):
        if not line.strip().startswith("|"):
            framed = framed and not line.strip().startswith("+-")
            break
        cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
        if len(cells) != len(columns) or not line.strip().endswith("|"):
            raise source.error(f"expected {len(columns)} columns between '|', found {short(line)}", number)
        name = cells[0]
        if prefix is None:
            # a model with nothing in it but one module goes by the name of that module, and leaves it out below
            prefix = "" if name == "model" else f"{name}."
            if prefix:
                source.notes.append(f"the first row stands for the model and for '{name}' alike")
            name = ""
        else:
            name = prefix + name
        for column, cell in zip(columns[1:], cells[1:], strict=True):
            if cell and not cell.startswith("(") and column in _FVCORE_COLUMNS:
                source.add_figure(number, name, "", _FVCORE_COLUMNS[column], cell)
    if prefix is None:
        raise source.error("no row of modules follows: the report is cut off", first)
    if framed:
        raise source.error("no line '+---' ends the table: the report is cut off", first)
    source.notes += [FVCORE_NOTE, "a module whose only child has the same figures is shown under the child's path"]


def read_torch_counter(source: Source) -> None:
    """Table of `torch.utils.flop_counter.FlopCounterMode`; its rows per operator are left out."""
    first, _ = header(source, TORCH_HEADER)
    rows: list[tuple[int, str, str, str]] = []
    root = ""
    for number, line in enumerate(source.lines[first + 1 :], start=first + 2):
        match = re.fullmatch(rf"((?:- )?\S+)\s+({NUMBER}[KMBT]?)\s+({NUMBER}%)", line.strip())
        if match:
            rows.append((number, match[1], match[2], match[3]))
            if not root and match[1] != "Global" and not match[1].startswith("- "):
                root = match[1].split(".")[0]
        elif line.strip().startswith(("- ", root or "- ")):
            raise source.error(f"expected 'module  FLOP  N%', found {short(line)}", number)
        else:
            break
    if not rows:
        raise source.error("no row of modules follows: the report is cut off", first)
    modules = [row for row in rows if not row[1].startswith("- ")]
    roots = {name.split(".")[0] for _, name, _, _ in modules} - {"Global"}
    for number, name, flops, share in modules:
        path, cls = (name, "")
        if name == "Global":
            path = TOTAL
        elif len(roots) == 1:
            path = name.removeprefix(root).removeprefix(".")
            cls = root if not path else ""
        source.add_figure(number, path, cls, "flops", flops)
        source.add_figure(number, path, cls, "flops_share", share)
    source.notes.append("FLOPs of everything inside the context, backward too if it ran there; the table does not say")
    source.notes.append("every figure has the unit and the decimals that suit the total: small modules are coarse")
    if len(roots) > 1:
        source.notes.append(f"several models ({', '.join(sorted(roots))}): paths begin with their classes")


_TORCHINFO_COLUMNS = (
    "Kernel Shape",
    "Input Shape",
    "Output Shape",
    "Param #",
    "Param %",
    "Mult-Adds",
    "Trainable",
)
_TORCHINFO_TOTALS = {
    "Total params": "params",
    "Trainable params": "params_trainable",
    "Non-trainable params": "params_frozen",
    "Total mult-adds": "macs_forward",
    "Input size": "input_bytes",
    "Forward/backward pass size": "activation_bytes",
    "Params size": "param_bytes",
    "Estimated Total Size": "memory_bytes",
}
_TORCHINFO_UNITS = {"M": 6, "MB": 6, "MEGABYTES": 6, "G": 9, "GIGABYTES": 9, "T": 12, "TERABYTES": 12}
_TORCHINFO_ROW = re.compile(
    r"(?P<bars>(?:[│|] {4})*)(?P<fork>├─|└─|\+ )?"
    r"(?P<class>[^\s(]+?)(?: \((?P<variable>[^()]+)\))?(?:: (?P<index>(?P<depth>\d+)(?:-\d+)?))?"
)


def read_torchinfo(source: Source) -> None:
    """Summary of torchinfo and of torch-summary, its predecessor, which has no row for the model.

    A module whose children are listed shows only the parameters that none of them has (`params_own`); its children's
    are not in it. Without the names of variables in the report, a path is made of torchinfo's own numbers.
    """
    first, title = header(source, TORCHINFO_HEADER)
    columns = sorted((name for name in _TORCHINFO_COLUMNS if name in title), key=title.index)
    if not columns:
        raise source.error(f"expected columns such as 'Param #', found {short(title)}", first)
    rules = [place for place, line in source.numbered() if place > first and line.strip().startswith("====")]
    if len(rules) > 1 and re.match(r"\s*[\w.]+-\d+\s", source.lines[rules[0]]):
        _torchinfo_totals(source, rules[1])
        source.notes.append("torchsummary's rows say in which order modules ran, not where they are: they are left out")
        return
    rows, last = _torchinfo_rows(source, first, title.index(columns[0]), columns)
    recursive = 0
    for position, (number, depth, path, cls, cells) in enumerate(rows):
        listed = position + 1 < len(rows) and rows[position + 1][1] > depth
        own = "params_own" if listed else "params"
        for quantity, cell in ((own, cells.get("Param #")), ("macs", cells.get("Mult-Adds"))):
            if cell == "(recursive)":
                recursive += 1
            elif cell and cell != "--":
                found = figure(cell.removeprefix("(").removesuffix(")"))  # in brackets: all of it is frozen
                if found is None:
                    raise source.error(f"expected a number for {quantity}, found {short(cell)}", number)
                source.add(number, path, cls, quantity, found, cell)
        percentage = cells.get("Param %", "--")
        if percentage not in ("--", "(recursive)"):
            source.add_figure(number, path, cls, f"{own}_share", percentage)
    _torchinfo_totals(source, last)
    source.notes.append("mult-adds are MACs; attention and every functional operation are missing from them")
    if recursive:
        source.notes.append(f"{recursive} rows are further calls of a module above and repeat no parameters")
    if "(var_name)" not in title:
        source.notes.append(
            "no names in this report: paths are torchinfo's depth-index; row_settings=['var_names'] mends it"
        )


def _torchinfo_rows(
    source: Source, first: int, width: int, columns: list[str]
) -> tuple[list[tuple[int, int, str, str, dict[str, str]]], int]:
    rows: list[tuple[int, int, str, str, dict[str, str]]] = []
    path: list[str] = []
    children = [0]
    for number, line in enumerate(source.lines[first:], start=first + 1):
        if line.startswith("===="):
            if number > first + 1:
                return rows, number
            continue
        cells = _cells(line[width:])
        if any(re.match("[├└]─", cell) for cell in cells):
            continue  # verbose=2: a parameter of the module above
        match = _TORCHINFO_ROW.fullmatch(line[:width].rstrip())
        if not match or len(cells) != len(columns):
            expected = f"a module and {len(columns)} columns ({', '.join(columns)})"
            raise source.error(f"expected {expected}, found {short(line)}", number)
        depth = len(match["bars"]) // 5 + 1 if match["fork"] else int(match["depth"] or 0)
        if not rows and depth == 1:
            children.append(0)  # no row for the model
        if depth >= len(children):
            raise source.error(f"expected a module at most {len(children) - 1} levels deep", number)
        position = children[depth]
        children[depth:] = [position + 1, 0]
        if depth:
            path[depth - 1 :] = [match["variable"] or match["index"] or str(position)]
        rows.append((number, depth, ".".join(path[:depth]), match["class"], dict(zip(columns, cells, strict=True))))
    raise source.error(f"ends inside the table of modules (line {source.number(first)}): the report is cut off")


def _torchinfo_totals(source: Source, first: int) -> None:
    pattern = re.compile(rf"(?P<label>[^:(]+?)(?: \((?:Units\.)?(?P<unit>\w+)\))?: (?P<number>{NUMBER})")
    found: dict[str, Claim] = {}
    last = first
    for number, line in enumerate(source.lines[first - 1 :], start=first):
        match = pattern.fullmatch(line.strip())
        quantity = _TORCHINFO_TOTALS.get(match["label"]) if match else None
        if match and quantity:
            unit = match["unit"] or ""
            if unit and unit not in _TORCHINFO_UNITS:
                raise source.error(f"expected a unit such as (M) or (GIGABYTES), found {short(unit)}", number)
            value = claim(match["number"], _TORCHINFO_UNITS.get(unit, 0))
            source.add(number, TOTAL, "", quantity, value, line.strip().split(": ")[1])
            found[quantity] = value
            last = number
    if "params" not in found:
        raise source.error("no line 'Total params: N' follows the table: the report is cut off", first)
    parts = [found.get(quantity) for quantity in ("params_trainable", "params_frozen")]
    known = [part for part in parts if part]
    ended = any(line.strip().startswith(("====", "----")) for line in source.lines[last:])
    if len(known) < len(parts) and not ended:
        raise source.error("the totals end here, before all parameters are named: the report is cut off", last)
    slack = sum(each.precision for each in (found["params"], *known))
    if len(known) == len(parts) and abs(found["params"].value - sum(part.value for part in known)) > slack:
        raise source.error("the parameters, trainable and not, do not add up to the total: the report is damaged", last)


def _cells(text: str) -> list[str]:
    """Parts between spaces, but a shape in square brackets is one part."""
    cells, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == " " and depth <= 0:
            cells.append("")
        else:
            cells[-1] += character
    return [cell for cell in cells if cell]
