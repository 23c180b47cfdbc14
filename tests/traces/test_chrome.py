"""Reading a recorded trace: every form of the text gives the same columns, and a bad one gives one line."""

import gc
import gzip
import json
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from gpuprof.errors import GpuprofError
from gpuprof.traces import chrome, chrome_text
from gpuprof.traces.events import Inputs

HEADER = {
    "schemaVersion": 1,
    "deviceProperties": [
        {
            "id": 0,
            "name": "NVIDIA X",
            "numSms": 4,
            "totalGlobalMem": 9,
            "computeMajor": 9,
            "computeMinor": 0,
            "warpSize": 32,
        }
    ],
    "record_shapes": 1,
    "cupti_version": 22,
    "cuda_runtime_version": 12080,
    "distributedInfo": {"backend": "nccl", "rank": 3, "world_size": 8, "nccl_version": "2"},
    "baseTimeNanoseconds": 1751410836000000000,
}
KNOWN = {
    "devices": [{"id": 0, "name": "NVIDIA X", "numSms": 4, "totalGlobalMem": 9, "computeMajor": 9, "computeMinor": 0}],
    "rank": 3,
    "world_size": 8,
    "cuda_runtime_version": 12080,
    "baseTimeNanoseconds": 1751410836000000000,
}


def event(cat, name, ts, dur, pid=7, tid=8, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


OPERATOR = {
    "Input Dims": [[2, 3], [[1], [2]], []],
    "Input type": ["float", "TensorList", "Scalar"],
    "Concrete Inputs": ["", "", "0.125"],
    "Sequence number": 11,
    "Fwd thread id": 1,
}
MODULE = {"Python id": 5, "Python parent id": None, "Python module id": 0}
ON_GPU = {"device": 1, "stream": 7, "correlation": 42}
EVENTS = [
    {"name": "process_name", "ph": "M", "ts": 1.0, "pid": 7, "tid": 0, "args": {"name": "python"}},
    event("cpu_op", "aten::mm", 100.5, 9.25, **OPERATOR),
    event("cpu_op", "aten::mm", 120.0, 9.25, **OPERATOR),
    event("cpu_op", "aten::t", 101.125, 1.0, tid="9"),
    event("user_annotation", "ProfilerStep#4", 90.001, 80.0),
    event("python_function", "nn.Module: Linear_0", 99.0, 20.0, **MODULE),
    event("python_function", "torch/nn/modules/linear.py(1): forward", 99.5, 10.0, **MODULE),
    event("cuda_runtime", "cudaLaunchKernel", 103.0, 2.0, correlation=42),
    event("cuda_driver", "cuLaunchKernel", 106.0, 1.0, cbid=3),
    event("kernel", "gemm<float>", 110.0, 7.5, pid=1, tid=7, grid=[1, 2, 3], **ON_GPU),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 120.0, 1.0, pid=1, tid=7, **ON_GPU | {"graph node id": 3}),
    event("gpu_memset", "Memset (Device)", 121.0, 0.0, pid=1, tid=20, device=0, correlation=43),
    event("gpu_user_annotation", "ProfilerStep#4", 110.0, 11.0, pid=1, tid=7),
    {"ph": "s", "id": 42, "pid": 7, "tid": 8, "ts": 103.0, "cat": "ac2g", "name": "ac2g"},
]
WHOLE = {**HEADER, "traceEvents": EVENTS}


@pytest.fixture
def write(tmp_path):
    def write(content, name="trace.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


@pytest.fixture
def read(write):
    return lambda content, **options: chrome.read(write(content), **options)


def rows(recorded):
    """The rows of each table in order of text, indices replaced by what they mean: cuts change both."""
    inputs = [*recorded.inputs, None]
    meaning = {"name": recorded.names, "thread": recorded.threads, "stream": recorded.streams, "inputs": inputs}
    tables = []
    for table in (recorded.host, recorded.runtime, recorded.device):
        columns = [
            [meaning[field][value] for value in column] if field in meaning else column.tolist()
            for field, column in zip(table._fields, table, strict=True)
        ]
        tables.append(sorted(zip(*columns, strict=True), key=repr))
    return tables


def everything(recorded):
    return rows(recorded), recorded.header, recorded.events, recorded.left_out, recorded.whole_us


def test_columns_are_what_the_file_says(read):
    recorded = read(WHOLE)

    inputs = Inputs([[2, 3], [[1], [2]], []], ["float", "TensorList", "Scalar"], ["", "", "0.125"])
    assert rows(recorded) == [
        [  # ns since ProfilerStep#4, which is the earliest: 90.001 us
            ("ProfilerStep#4", 1, ("7", "8"), 0, 80000, -1, 0, None, -1),
            ("aten::mm", 0, ("7", "8"), 10499, 19749, 11, 1, inputs, -1),
            ("aten::mm", 0, ("7", "8"), 29999, 39249, 11, 1, inputs, -1),
            ("aten::t", 0, ("7", "9"), 11124, 12124, -1, 0, None, -1),
            ("nn.Module: Linear_0", 2, ("7", "8"), 8999, 28999, -1, 0, None, 5),
        ],
        [
            ("cuLaunchKernel", ("7", "8"), 15999, 16999, -1),
            ("cudaLaunchKernel", ("7", "8"), 12999, 14999, 42),
        ],
        [
            ("Memcpy DtoH (Device -> Pinned)", 1, 1, "7", 29999, 30999, 42),
            ("Memset (Device)", 2, 0, "20", 30999, 30999, 43),
            ("gemm<float>", 0, 1, "7", 19999, 27499, 42),
        ],
    ]
    assert recorded.header == KNOWN
    assert recorded.events == len(EVENTS)
    assert recorded.inputs == [inputs]
    assert not recorded.whole_us
    assert not recorded.left_out
    assert [column.dtype for column in recorded.device] == [
        np.int32, np.int8, np.int64, np.int32, np.int64, np.int64, np.int64
    ]  # fmt: skip


NESTED = {"x": [{"a": "},{"}, {"b": '{"ph":"X"},'}, {"traceEvents": [{}, {}]}], "y": [[{}, {}]]}
TEXTS = {
    "compact": json.dumps(WHOLE, separators=(",", ":")),
    "indented": json.dumps(WHOLE, indent=4),
    "header behind": json.dumps({"traceEvents": EVENTS, **HEADER}),
    "header around": json.dumps(
        {**dict(list(HEADER.items())[:2]), "traceEvents": EVENTS, **HEADER, "traceName": "],{"}
    ),
    "keys in another order": json.dumps({**HEADER, "traceEvents": [dict(reversed(one.items())) for one in EVENTS]}),
    "what looks like cuts": json.dumps({**HEADER, "traceEvents": [{**one, **NESTED} for one in EVENTS]}),
    "decoy lists": json.dumps({"a": {"traceEvents": [1]}, "b": '"traceEvents":[', **WHOLE, "c": NESTED}),
    "byte order mark": "\ufeff\n" + json.dumps(WHOLE) + "\n",
    "what strict JSON has not": json.dumps(
        {**HEADER, "traceEvents": [{**one, "q": [float("nan"), float("inf"), "\ud800"]} for one in EVENTS]}
    ).replace('"q": [', '"q": [1e999, "\t", '),
    "numbers in quotes": json.dumps(
        {
            **HEADER,
            "traceEvents": [
                {key: str(one[key]) if key in ("ts", "dur") else one[key] for key in one} for one in EVENTS
            ],
        }
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("block", [61, 997, chrome_text.BLOCK])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_form_of_the_text_gives_the_same(text, block, packed, read, monkeypatch):
    whole = read(WHOLE)
    monkeypatch.setattr(chrome_text, "BLOCK", block)
    data = text.encode()
    if packed:  # in two members, of which the first ends within an event
        data = gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])

    assert everything(read(data)) == everything(whole)


def test_a_bare_list_has_no_header(read):
    recorded = read(EVENTS)

    assert recorded.header == {}
    assert rows(recorded) == rows(read(WHOLE))


def test_names_of_2020(read):
    shapes = {"Input dims": [[4, 4]], "Input type": [], "Output dims": [[4, 4]], "Output names": []}
    recorded = read(
        [
            event("Operator", "aten::relu", 1610366662254362, 4, tid="1890023232", **shapes),
            event("Runtime", "cudaLaunchKernel", 1610366662254363, 1, tid="1890023232", correlation=7),
            event("Kernel", "relu", 1610366662254370, 0, pid=0, tid="stream 7", device=0, stream=7, correlation=7),
            event("Memcpy", "Memcpy HtoD", 1610366662254371, 2, pid=0, tid="stream 7", device=0, correlation=8),
            event("Memset", "Memset", 1610366662254375, 2, pid="2", tid="stream 7"),
        ]
    )

    inputs = Inputs([[4, 4]], [], None)
    assert rows(recorded) == [
        [("aten::relu", 0, ("7", "1890023232"), 0, 4000, -1, 0, inputs, -1)],
        [("cudaLaunchKernel", ("7", "1890023232"), 1000, 2000, 7)],
        [
            ("Memcpy HtoD", 1, 0, "stream 7", 9000, 11000, 8),
            ("Memset", 2, 2, "stream 7", 13000, 15000, -1),
            ("relu", 0, 0, "7", 8000, 8000, 7),
        ],
    ]
    assert recorded.whole_us


def test_times_are_exact_to_the_nanosecond(read):
    # of 2024: microseconds since 1970, of which a float holds a quarter; and the largest that torch writes now
    texts = ["1712195495406752", "1712195495406752.765", "1712195495406753.001", "1712195495406753.1"]
    large = (
        b"["
        + b",".join(
            json.dumps(event("kernel", text, 0, 1)).replace('"ts": 0', f'"ts": {text}').encode() for text in texts
        )
        + b"]"
    )
    small = [event("kernel", "a", 7948799999999.001, 0.001), event("kernel", "b", 7948799999999.999, 1e-3)]

    assert read(large).device.start.tolist() == [0, 765, 1001, 1100]
    assert read(large[:-1] + b',{"cat": 5}]').device.start.tolist() == [0, 765, 1001, 1100]  # one that cannot be read
    assert read(small).device.start.tolist() == [0, 998]
    assert read(small).device.end.tolist() == [1, 999]


def test_numbers_beyond_64_bits_stay_apart(read):
    numbers = [2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1, 2**70, -(2**70), None]
    recorded = read([event("kernel", "k", index, 1, correlation=number) for index, number in enumerate(numbers)])

    assert recorded.device.correlation.tolist() == [2**63 - 1, -(2**63), -2, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ts": None}, chrome.NO_START),
        ({"ts": float("nan")}, chrome.NO_START),
        ({"ts": 1e300}, chrome.NO_START),
        ({"dur": None}, chrome.NO_DURATION),
        ({"dur": -1}, chrome.NO_DURATION),
        ({"dur": float("inf")}, chrome.NO_DURATION),
        ({"ph": "B"}, chrome.NOT_COMPLETE),
        ({"ts": "soon"}, chrome_text.UNREADABLE),
        ({"ts": True}, chrome_text.UNREADABLE),
        ({"name": 5}, chrome_text.UNREADABLE),
        ({"name": ["a"]}, chrome_text.UNREADABLE),
        ({"cat": {}}, chrome_text.UNREADABLE),
        ({"pid": [1]}, chrome_text.UNREADABLE),
        ({"tid": 1.5}, chrome_text.UNREADABLE),
        ({"args": []}, chrome_text.UNREADABLE),
        ({"args": {"correlation": "x"}}, chrome_text.UNREADABLE),
        ({"args": {"device": {}}}, chrome_text.UNREADABLE),
        ({"args": {"stream": False}}, chrome_text.UNREADABLE),
    ],
    ids=str,
)
def test_an_event_that_cannot_be_read_is_left_out_and_counted(change, reason, read):
    bad = event("kernel", "k", 5, 1, device=0) | change

    recorded = read({"traceEvents": [*EVENTS[:5], bad, *EVENTS[5:]], **HEADER})

    assert rows(recorded) == rows(read(WHOLE))
    assert recorded.left_out == {reason: 1}
    assert recorded.events == len(EVENTS) + 1


@pytest.mark.parametrize("value", [[5], {"a": 1}, "x", 7, [[["a"]]], None], ids=str)
def test_inputs_are_given_as_they_are(value, read):
    recorded = read([event("cpu_op", "aten::a", 1, 1, **{"Input Dims": value})])

    assert recorded.inputs == [Inputs(value, None, None)]
    assert recorded.host.inputs.tolist() == [0]


def test_module_ranges_that_name_each_other_as_parents_are_read(read):
    ranges = [
        event("python_function", f"nn.Module: A_{one}", one, 9, **{"Python id": one, "Python parent id": 1 - one})
        for one in (0, 1)
    ]

    recorded = read([*ranges, event("cpu_op", "aten::a", 1, 1)])

    assert [row[0] for row in rows(recorded)[0]] == ["aten::a", "nn.Module: A_0", "nn.Module: A_1"]


def test_nothing_of_the_header_but_what_is_listed(read):
    secret = "hunter2"
    header = {
        **HEADER,
        "env": {"TOKEN": secret},
        "host_name": secret,
        "record_shapes": secret,
        "with_stack": [secret],
        "deviceProperties": [{"id": secret, "name": [secret], "serial": secret}, secret],
        "distributedInfo": {"rank": secret, "backend": {"a": secret}, "pg_config": [secret]},
    }

    for content in ({**header, "traceEvents": EVENTS}, {"traceEvents": EVENTS, **header, "traceName": secret}):
        assert secret not in repr(read(content))
        assert read(content).header["devices"] == [{}]


def broken(content, write):
    """The line that is said of a file."""
    path = write(content)
    with pytest.raises(GpuprofError) as raised:
        chrome.read(path)
    said = str(raised.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    return said.removeprefix(str(path))


@pytest.mark.parametrize("block", [64, chrome_text.BLOCK])
def test_a_file_cut_short_says_where(block, write, monkeypatch):
    monkeypatch.setattr(chrome_text, "BLOCK", block)
    text = json.dumps(WHOLE).encode()
    third = text.index(b'"name": "aten::mm"', text.index(b'"name": "aten::mm"') + 1)
    fourth = text.index(b"{", text.index(b"}}", third))

    assert broken(text[:third], write).startswith(f" is cut short: it ends in event 3, at byte {third} of its text")
    assert broken(text[:fourth], write).startswith(f" is cut short: it ends after event 3, at byte {fourth} ")
    assert broken(text[:-2], write).startswith(f" is cut short: it ends after event {len(EVENTS)}, ")
    assert broken(text[:-1], write).startswith(f" is cut short or damaged after event {len(EVENTS)}")
    assert broken(text[:100], write).startswith(" is cut short before its first event, at byte 100 ")
    packed = gzip.compress(text, 0)
    assert "it ends in event 3" in (said := broken(packed[: third + 30], write))
    assert "gzip data are cut short" in said


def test_wherever_a_file_is_cut_it_is_one_line(write):
    text = json.dumps(WHOLE).encode()
    packed = gzip.compress(text)
    for whole in (text, packed):
        for length in random.Random(0).sample(range(3, len(whole)), 40):
            assert "cut short" in broken(whole[:length], write)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'[{"ph":"X"} {"ph":"X"}' + b"," * 40 + b"]", "no JSON after event 1, at byte 12 of its text"),
        (b'[{"ph":"X"},{"ph" "X"' + b" " * 40 + b"}]", "no JSON in event 2, at byte 18 of its text"),
        (b'[{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "no JSON in event 1, at byte 2 "),
        (b'{"traceEvents":[{}],"traceEvents":[{}]}', "two lists of events"),
        (b"[{}] x", "damaged after event 1 (there is text after its end)"),
    ],
    ids=["comma missing", "colon missing", "nested too deep", "two lists", "more text"],
)
def test_a_text_that_is_no_json_says_where(text, said, write):
    assert said in broken(text, write)


def test_a_trace_with_nothing_to_read_names_what_there_is(write):
    said = broken([event("<b>overhead", "x", 1, 1), event("kernel", "k", 1, -1), {"ph": "M"}], write)

    assert "no work of a GPU and no operator" in said
    assert "1 of '<b>overhead', 1 of 'kernel', 1 of no category, 1 left out for no duration or a negative one" in said
    assert "(events: none)" in broken([], write)


@pytest.mark.parametrize(
    ("category", "device"), [("xpu_runtime", "an Intel GPU"), ("mtia_ccp_events", "MTIA"), ("hpu_op", "Gaudi")]
)
def test_other_devices_are_refused_by_name(category, device, write):
    assert f"is a trace of {device}" in broken([*EVENTS, event(category, "a", 1, 1)], write)


def test_progress_is_told_and_garbage_collection_left_as_it_was(read, write, monkeypatch):
    monkeypatch.setattr(chrome_text, "BLOCK", 256)
    told = []

    read(WHOLE, progress=lambda done, total: told.append((done, total)))

    size = len(json.dumps(WHOLE))
    assert told == [(min(done, size), size) for done in range(256, size + 256, 256)]
    assert gc.isenabled()
    gc.disable()
    try:
        broken(b"[{", write)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_memory_is_that_of_a_block_not_of_the_text(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(chrome_text, "BLOCK", 1 << 16)
    path = tmp_path / "long.json"
    frame = json.dumps(event("python_function", "f", 1.5, 1.0, **{"Python id": 1})).encode()
    with path.open("wb") as file:
        file.write(b"[" + json.dumps(event("cpu_op", "aten::a", 1, 1)).encode())
        for _ in range(100):
            file.write((b"," + frame) * 1000)
        file.write(b"]")

    tracemalloc.start()
    try:
        recorded = chrome.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert recorded.events == 100_001
    assert path.stat().st_size > 10e6
    assert peak < 2e6


TRACES = next(
    (folder / "shared/traces" for folder in Path(__file__).resolve().parents if (folder / "shared/traces").is_dir()),
    None,
)
# kernels and, to a microsecond, busy seconds of each file, as worked out from them by other code
KERNELS_AND_BUSY = {
    "a100-alexnet-no-shapes": (79, 0.066141),
    "a100-compiled-graphs-2023": (6080, 0.438424),
    "a100-recommender-2023": (8568, 0.388586),
    "b200-vllm-moe-tp8": (768, 0.011596),
    "h100-bert-small-inference": (60, 0.000309),
    "h100-mlp-2025": (48, 0.000391),
    "h100-vit-inference": (154, 0.001225),
    "mi210-gpu-events-only": (562, 0.005343),
    "mi300x-bert-small-inference": (60, 0.000391),
    "mi300x-compiled-triton": (12, 0.012549),
    "mi300x-resnet18-ddp-train": (2360, 0.358940),
    "mi300x-vllm-decode-graph": (425, 0.010718),
    "v100-dlrm-rank0": (245, 0.006590),
    "v100-dlrm-rank3": (315, 0.010708),
    "v100-five-steps": (4350, 0.472454),
    "v100-resnet50-train-2020": (9564, 0.653526),
}


def busy(intervals):
    """Length of a union of intervals."""
    length, reached = 0, None
    for start, end in sorted(intervals):
        if reached is None or start > reached:
            length, reached = length + end - start, end
        elif end > reached:
            length, reached = length + end - reached, end
    return length


@pytest.mark.skipif(TRACES is None, reason="the published traces are not beside this repository")
@pytest.mark.parametrize("name", KERNELS_AND_BUSY)
def test_published_traces(name):
    path = TRACES / f"{name}.json.gz"
    kernels, seconds = KERNELS_AND_BUSY[name]
    events = json.loads(gzip.decompress(path.read_bytes()), parse_float=Decimal)["traceEvents"]
    of_gpu = [
        one for one in events if one.get("cat", "").lower().removeprefix("gpu_") in ("kernel", "memcpy", "memset")
    ]
    intervals = {}
    for one in of_gpu:
        intervals.setdefault(one["args"]["device"], []).append((one["ts"], one["ts"] + one["dur"]))

    recorded = chrome.read(path)

    device = recorded.device
    assert (device.category == chrome.KERNEL).sum() == kernels
    assert len(device.name) == len(of_gpu)
    times = {
        number: busy(zip(device.start[device.device == number], device.end[device.device == number], strict=True))
        for number in set(device.device.tolist())
    }
    assert times == {number: 1000 * busy(of_one) for number, of_one in intervals.items()}
    assert abs(sum(times.values()) - round(seconds * 1e9)) <= 1000
    assert recorded.events == len(events)
    assert not recorded.left_out
