"""How large the rooms may be: functions that fit on a page, and verbs whose parameters a reader can hold."""

import ast
from pathlib import Path

import gpuprof

PACKAGE = Path(gpuprof.__file__).parent
MOST_LINES = 80
MOST_PARAMETERS = 12


def functions(folder: Path):
    """Every function and method below a folder, with the file it is in."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PACKAGE)}: {node.name}", node


def test_no_function_is_longer_than_a_page():
    lines = {name: node.end_lineno - node.lineno + 1 for name, node in functions(PACKAGE)}

    assert {name: length for name, length in lines.items() if length > MOST_LINES} == {}


def test_no_function_of_the_command_line_has_more_parameters_than_a_reader_holds():
    counts = {
        name: len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
        for name, node in functions(PACKAGE / "cli")
    }

    assert {name: count for name, count in counts.items() if count > MOST_PARAMETERS} == {}
