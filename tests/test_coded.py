import json
from array import array

import pytest
from runs import gpu_run

import gpuprof
from gpuprof.coded import Column, coded, decoded, distinct

LAYERS = [f"layers.{layer}" for layer in range(10) for _ in range(6)]
PHASES = ["forward", "forward", "forward", "backward", "backward", "backward"] * 10


def test_columns_that_repeat_together_share_an_index():
    kinds = ["mm", "mm", "add", "mm", "mm", "add"] * 10

    forms = coded({"module": LAYERS, "phase": PHASES, "op": kinds, "bytes": [8, 8, None, 8, 8, None] * 10})

    assert forms == {
        "module": {"values": [f"layers.{layer}" for layer in range(10)], "index": [row // 6 for row in range(60)]},
        "phase": {"values": ["forward", "forward", "backward", "backward"], "index": [0, 0, 1, 2, 2, 3] * 10},
        "op": {"values": ["mm", "add", "mm", "add"], "index": "phase"},
        "bytes": {"values": [8, None, 8, None], "index": "phase"},
    }


def test_starts_are_steps_where_that_is_shorter():
    starts = [5, *range(1_000_000, 1_000_590, 10)]

    assert coded({"start_ns": starts}) == {"start_ns": {"steps": [5, 999_995, *[10] * 58]}}


@pytest.mark.parametrize("values", [
    [row * 17 % 61 for row in range(60)], [""] * 49, [0.5] * 60, [-0.0, 0.0] * 30, [*map(str, range(60))], [],
])  # fmt: skip
def test_what_gains_nothing_or_would_lose_something_stays_a_list(values):
    assert coded({"column": values}) == {"column": values}


@pytest.mark.parametrize("columns", [
    {"a": LAYERS, "b": PHASES},
    {"a": [2**70, -(2**70)] * 40, "b": [None, *range(0, 79_000_000, 1_000_000)]},
    {"a": [None] * 60, "b": [10**9 + (row * row) % 7 for row in range(60)]},
])  # fmt: skip
def test_what_is_coded_is_decoded(columns):
    forms = json.loads(json.dumps(coded(columns)))

    found = decoded(forms, columns)

    assert forms != columns
    assert {name: [*values] for name, values in found.items()} == columns


def test_a_column_is_a_sequence_of_its_rows():
    column = Column(["a", None], array("I", [0, 1, 0]))

    assert [*column] == ["a", None, "a"]
    assert (len(column), column[2], column[1:], None in column, bool(Column([], array("I")))) == (
        3, "a", [None, "a"], True, False,
    )  # fmt: skip


def test_distinct_values_are_those_that_rows_have():
    column = Column(["a", "in no row", None, "a"], array("I", [3, 2, 0, 2]))

    assert distinct(column) == distinct([*column]) == {"a", None}


def saved(tmp_path, change):
    """The file of a run with 60 rows more of ``memory``, changed."""
    run = gpu_run()
    rows = {"module": LAYERS, "phase": PHASES, "quantity": ["kept"] * 60, "source": ["analytic"] * 60}
    run.memory = rows | {"bytes": [1 << 40, *range(1 << 40, (1 << 40) + 59)]}
    path = run.save(tmp_path / "run.json")
    data = json.loads(path.read_text())
    change(data["memory"])
    path.write_text(json.dumps(data))
    return run, path


def test_a_file_has_the_columns_coded_and_a_run_plain(tmp_path):
    run, path = saved(tmp_path, lambda memory: None)

    held = json.loads(path.read_text())["memory"]

    assert held["phase"] == {"values": ["forward", "backward"], "index": [0, 0, 0, 1, 1, 1] * 10}
    assert held["quantity"] == {"values": ["kept", "kept"], "index": "phase"}
    assert held["bytes"] == {"steps": [1 << 40, 0, *[1] * 58]}
    assert gpuprof.load(path).to_dict() == run.to_dict()
    assert gpuprof.load(path).memory.equals(run.memory)


@pytest.mark.parametrize(("change", "fault"), [
    (lambda memory: memory["phase"]["index"].__setitem__(3, 2), "the index of phase leads nowhere"),
    (lambda memory: memory["phase"]["index"].__setitem__(3, -1), "the index of phase is none"),
    (lambda memory: memory["phase"]["index"].__setitem__(3, 0.5), "the index of phase is none"),
    (lambda memory: memory["phase"]["index"].pop(), "memory has columns of different length"),
    (lambda memory: memory["phase"].update(index=None), "the index of phase is none"),
    (lambda memory: memory["phase"].update(index="quantity"), "the index of phase is none"),
    (lambda memory: memory["phase"].update(index="gone"), "'gone'"),
    (lambda memory: memory["phase"].update(values="ab"), "the index of phase leads nowhere"),
    (lambda memory: memory["phase"].update(values=["forward", 3]), "memory.phase is no list of texts"),
    (lambda memory: memory["phase"].pop("values"), "'values'"),
    (lambda memory: memory["phase"].update(steps=[1] * 60), "memory.phase is no list of texts"),
    (lambda memory: memory["bytes"]["steps"].__setitem__(3, "1"), "the steps of bytes are none"),
    (lambda memory: memory["bytes"]["steps"].__setitem__(3, 2**1000), "memory.bytes is out of range"),
    (lambda memory: memory["bytes"]["steps"].__setitem__(3, True), "the steps of bytes are none"),
])  # fmt: skip
def test_a_form_that_is_broken_is_one_line(tmp_path, change, fault):
    _, path = saved(tmp_path, change)

    with pytest.raises(gpuprof.GpuprofError) as refused:
        gpuprof.load(path)

    assert str(refused.value) == f"{path} is a gpuprof run with a part missing or broken ({fault}): profile again"
