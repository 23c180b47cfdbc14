"""A row of the ``ops`` table from what a trace says of an operator's inputs."""

from __future__ import annotations

import functools
import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import gpuprof
from gpuprof.hardware import kineto
from gpuprof.passes.counting import count
from gpuprof.passes.operators import is_composite_name
from gpuprof.theory import rule_for
from gpuprof.theory.priced import FIGURES
from gpuprof.traces.composite import is_composite
from gpuprof.traces.events import OPERATOR, Inputs, host_kind
from gpuprof.traces.pricing import (
    NO_LISTS,
    NO_RESULT,
    NO_RULE,
    NO_SHAPES,
    NO_VALUES,
    NOT_STORED,
    UNLIKE,
    described,
)
from gpuprof.workload.workload import from_module

attend = F.scaled_dot_product_attention
KINDS = ("matmul", "convolution", "attention", "recurrent")


def outermost(path: Path) -> list[tuple[str, Inputs]]:
    """Operators that are merely composed of others left out, and what others call."""
    content = json.loads(path.read_text())
    threads = defaultdict(list)
    for event in content["traceEvents"]:
        if event.get("cat") == "cpu_op" and host_kind(event["name"]) == OPERATOR and not is_composite(event["name"]):
            threads[event["tid"]].append(event)
    found = []
    for events in threads.values():
        end = 0.0
        for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
            if event["ts"] >= end:
                end = event["ts"] + event["dur"]
                args = event["args"]
                said = (args.get(key) for key in ("Input Dims", "Input type", "Concrete Inputs"))
                found.append((event["name"], Inputs(*said)))
    return found


class Function(nn.Module):
    """A function of parameters of these shapes, and of what it is called with."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        self.factors = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, *args):
        return self.function(*self.factors, *args)


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(16).reshape(2, 8)
TEXT = {"input_ids": IDS, "labels": IDS}
PADDED = {**TEXT, "attention_mask": torch.tensor([[0] * 3 + [1] * 5, [1] * 8])}
IMAGE = {"pixel_values": torch.ones(2, 3, 16, 16), "labels": torch.tensor([0, 1])}
QKV = (2, 2, 6, 8)


def llama(attention):
    config = hf.LlamaConfig(**SMALL, vocab_size=64, num_key_value_heads=1, attn_implementation=attention)
    return hf.LlamaForCausalLM(config)


STEPS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)), torch.ones(6, 8)),
    "mlp in bfloat16": (lambda: nn.Sequential(nn.Linear(8, 16), nn.SiLU()).bfloat16(), torch.ones(6, 8).bfloat16()),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.Conv2d(6, 6, 3, dilation=2, groups=6, bias=False), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 3),
        ),
        torch.ones(2, 4, 24, 24),
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, padding="same"), nn.GroupNorm(2, 6)), torch.ones(2, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, stride=2), torch.ones(1, 2, 9, 9, 9)),
    "lstm": (lambda: nn.LSTM(4, 8, 2, bidirectional=True), torch.ones(5, 2, 4)),
    "gru": (lambda: nn.GRU(4, 8, 2), torch.ones(5, 2, 4)),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.ones(2, 5, 16)),
    "encoder in inference": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(),
        torch.ones(2, 5, 16),
    ),
    "llama": (lambda: llama("sdpa"), TEXT),
    "llama, attention in products": (lambda: llama("eager"), TEXT),
    "bert": (lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL, vocab_size=64, max_position_embeddings=32)), PADDED),
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**SMALL, image_size=16, patch_size=8)), IMAGE),
    "mixtral": (
        lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(**SMALL, vocab_size=64, num_key_value_heads=1, num_local_experts=4)
        ),
        TEXT,
    ),
    "causal": (lambda: Function(functools.partial(attend, is_causal=True), QKV, QKV, QKV), None),
    "not causal": (lambda: Function(attend, QKV, (2, 2, 9, 8), (2, 2, 9, 8)), None),
    "embedding bag": (lambda: nn.EmbeddingBag(10, 4), torch.tensor([[1, 2, 3, 4]])),
    "baddbmm": (lambda: Function(torch.baddbmm, (3, 4, 6), (3, 4, 5), (3, 5, 6)), None),
    "einsum": (lambda: Function(lambda a, b: torch.einsum("abc,acd->abd", a, b), (2, 3, 4), (2, 4, 5)), None),
    "bilinear": (lambda: Function(F.bilinear, (3, 4), (3, 5), (6, 4, 5)), None),
    "distances": (lambda: Function(torch.cdist, (30, 4), (40, 4)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_a_trace_gives_what_the_counting_pass_counts(name, tmp_path):
    """Products to the FLOP and byte; every other figure that a trace gives is that of the same call, counted."""
    build, given = STEPS[name]
    torch.manual_seed(0)
    args, kwargs = ((), given) if isinstance(given, dict) else (() if given is None else (given,), {})
    mode = "forward" if "inference" in name else "train"
    workload = from_module(build(), args, kwargs, mode=mode)
    workload.step()
    counted, live = Counter(), defaultdict(set)
    for row in count(workload).ops.itertuples():
        figures = tuple(None if pd.isna(value) else value // row.calls for value in (getattr(row, f) for f in FIGURES))
        op = row.op.partition(".")[0]
        live[op, row.shapes].add((row.dtype, row.kind, *figures))
        if row.kind in KINDS:
            counted[op, row.shapes, row.dtype, row.kind, *figures] += row.calls

    with kineto.quiet(), profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_modules=True) as profiler:
        workload.step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    priced, unequal = Counter(), []
    for op, inputs in outermost(tmp_path / "trace.json"):
        found = described(op, inputs, "cpu")
        row = (found.dtype, found.kind, *found.priced)
        if found.kind in KINDS:
            priced[op, found.shapes, *row] += 1
        elif (counted_alike := live.get((op, found.shapes))) and not any(
            all(told in (None, "", figure) for told, figure in zip(row, each, strict=True)) for each in counted_alike
        ):
            unequal.append((op, found.shapes, row, counted_alike))

    assert unequal == []
    assert without_masks(priced) == without_masks(counted) if "in products" in name else told(priced, counted)
    assert priced or name == "embedding bag"


def without_masks(calls: Counter) -> Counter:
    """Causal FLOPs left out: that a product is one of an attention with a causal mask, only the model says."""
    found = Counter()
    for (*what, _causal, full, hardware, vector, nbytes), times in calls.items():
        found[*what, full, hardware, vector, nbytes] += times
    return found


def told(priced: Counter, counted: Counter) -> bool:
    """Whether both are equal, but for results and bytes of oneDNN's recurrent layers, whose workspace nobody tells."""

    def plain(calls: Counter) -> Counter:
        found = Counter()
        for (op, shapes, *row), times in calls.items():
            untold = op.startswith("aten::mkldnn_rnn")
            found[op, shapes.partition(" ->")[0] if untold else shapes, *(row[:-1] if untold else row)] += times
        return found

    return plain(priced) == plain(counted)


# -- what files have, and have not

FLOAT = ["float", "float", "float"]
CONV = [[2, 3, 8, 8], [4, 3, 3, 3], [4], [], [], [], [], [], []]
CONV_TYPES = [*FLOAT, "ScalarList", "ScalarList", "ScalarList", "Scalar", "ScalarList", "Scalar"]
CONV_VALUES = ["", "", "", "[2, 2]", "[0, 0]", "[1, 1]", "False", "[0, 0]", "1"]
QKV_DIMS = [[1, 2, 4, 8]] * 3
FUSED = [[[5], [3, 2]]] * 4 + [[], [[], []]] + [[]] * 9
FUSED_TYPES = ["TensorList"] * 6 + ["Scalar"] * 7 + ["", ""]
FUSED_VALUES = [""] * 6 + ["0.001", "0.9", "0.999", "0.01", "1e-08", "False", "False", "", ""]

PRICED = {
    "complex numbers": (
        "aten::mm", [[4, 5], [5, 6]], ["c10::complex<float>"] * 2, ["", ""],
        ("matmul", "4x5 5x6 -> 4x6", "complex64", (8 * 120,) * 3 + (0, 8 * 74)),
    ),
    "into a result that is there": (
        "aten::mm", [[4, 5], [5, 6], [4, 6]], ["c10::Half"] * 3, ["", "", ""],
        ("matmul", "4x5 5x6 4x6 -> 4x6", "float16", (240,) * 3 + (0, 2 * 74)),
    ),
    "a dtype that is new": (
        "aten::mm", [[4, 5], [5, 6]], ["c10::Float6_e3m2"] * 2, ["", ""],
        ("matmul", "4x5 5x6 -> 4x6", "float6_e3m2", (240,) * 3 + (0, 74)),
    ),
    "a product of 2020": (
        "aten::mm", [[4, 5], [5, 6]], None, None, ("matmul", "4x5 5x6 -> 4x6", "", (240,) * 3 + (0, None)),
    ),
    "a strided convolution": (
        "aten::convolution", CONV, CONV_TYPES, CONV_VALUES,
        # 2 x 4 x 3 x 3 results of 27 products each
        ("convolution", "2x3x8x8 4x3x3x3 4 -> 2x4x3x3", "float32", (2 * 72 * 27,) * 3 + (72, 4 * (384 + 108 + 4 + 72))),
    ),
    "a convolution without its values": ("aten::convolution", CONV, CONV_TYPES, None, NO_VALUES),
    "a convolution of 2020": ("aten::convolution", CONV, None, None, NO_VALUES),
    "the gradients of a convolution, of its weight alone": (
        "aten::convolution_backward", [[2, 4, 3, 3], [2, 3, 8, 8], [4, 3, 3, 3], *[[]] * 8],
        [*FLOAT, *["ScalarList"] * 4, "Scalar", "ScalarList", "Scalar", "ScalarList"],
        ["", "", "", "[4]", "[2, 2]", "[0, 0]", "[1, 1]", "False", "[0, 0]", "1", "[False, True, True]"],
        ("convolution", "2x4x3x3 2x3x8x8 4x3x3x3 -> 4x3x3x3 4", "float32", (3888,) * 3 + (72, 4 * (72 + 384 + 220))),
    ),
    "the same without its values": (
        "aten::convolution_backward", [[2, 4, 3, 3], [2, 3, 8, 8], [4, 3, 3, 3], *[[]] * 8],
        [*FLOAT, "", "", "", "", "Scalar", "", "Scalar", ""], None, NO_VALUES,
    ),
    "the gradient of an input before torch 1.11": (
        "aten::cudnn_convolution_backward_input", [[], [2, 4, 3, 3], [4, 3, 3, 3], *[[]] * 7], None, None,
        ("convolution", "2x4x3x3 4x3x3x3 -> ", "", (3888,) * 3 + (0, None)),
    ),
    "a fused optimizer, whose lists have no dtypes": (
        "aten::_fused_adamw_", FUSED, FUSED_TYPES, FUSED_VALUES,
        ("vector", "5 3x2 5 3x2 5 3x2 5 3x2 and 2 more -> ", "", (0, 0, 0, 15 * 11, None)),
    ),
    "a list of more than 30": ("aten::_foreach_mm", [[], []], ["TensorList"] * 2, ["", ""], NO_LISTS),
    "an activation by a text": (
        "aten::gelu", [[4, 5], []], ["c10::BFloat16", ""], ["", ""],
        ("vector", "4x5 -> 4x5", "bfloat16", (0, 0, 0, None, 80)),
    ),
    "a number of Python": (
        "aten::mul", [[4, 5], []], ["c10::BFloat16", "double"], ["", ""],
        ("vector", "4x5 -> 4x5", "bfloat16", (0, 0, 0, 20, 80)),
    ),
    "a counter": (
        "aten::add_", [[], [], []], ["long int", "long int", "Scalar"], ["", "", "1"],
        ("vector", "scalar -> scalar", "int64", (0, 0, 0, 1, 16)),
    ),
    "indices that no file has": (
        "aten::index", [[9, 4], []], ["float", ""], ["", ""], ("movement", "9x4 -> ", "float32", (0, 0, 0, 0, None)),
    ),
    "sums by them": (
        "aten::index_put_", [[9, 4], [], [3, 4], []], ["float", "", "float", "Scalar"], ["", "", "", "True"],
        ("movement", "9x4 3x4 -> 9x4", "float32", (0, 0, 0, None, None)),
    ),
    "a sparse factor": (
        "aten::_sparse_addmm", [[3, 3], [3, 3], [3, 3], [], []], [*FLOAT, "Scalar", "Scalar"], ["", "", "", "0", "1"],
        NOT_STORED,
    ),
    "a nested tensor, of which there is nothing": (
        "aten::native_layer_norm", [[], [], [8], [8], []], ["", "ScalarList", "float", "float", "Scalar"],
        ["", "[8]", "", "", "1e-05"], ("vector", "", "", (0, 0, 0, None, None)),
    ),
    "an attention with scales, in float8": (
        "aten::_scaled_dot_product_flash_attention", [*QKV_DIMS, [], [], [], [], [], [], []],
        ["c10::Float8_e4m3fn"] * 3 + ["", "", "", "Scalar", "Scalar", "Scalar", ""],
        [""] * 6 + ["0.", "True", "False", ""],
        # as below, where a causal mask leaves 10 of 16 pairs
        ("attention", "1x2x4x8 1x2x4x8 1x2x4x8 -> ", "float8_e4m3fn", (640, 1024, 640, 5 * 20, None)),
    ),
    "arguments of an earlier torch": (
        "aten::_scaled_dot_product_cudnn_attention_backward", [*[[1, 2, 4, 8]] * 5, [1, 2, 4], *[[]] * 9],
        ["c10::Half"] * 5 + ["float", "long int", "long int"] + ["Scalar"] * 7, [""] * 8 + ["1"] * 7, UNLIKE,
    ),
    "an operator of nobody": ("mylib::attend", [[4, 5]], ["float"], [""], NO_RULE),
    "no shapes": ("aten::mm", None, None, None, NO_SHAPES),
    "no shapes of what multiplies nothing": ("aten::relu", None, None, None, ("vector", "", "", (0, 0, 0, None, None))),
    "no shapes of what moves nothing": ("aten::view", None, None, None, ("view", "", "", (0, 0, 0, 0, 0))),
    "what cannot be": ("aten::mm", [[4, 5], 7], ["float"] * 2, None, UNLIKE),
    "sizes that are none": ("aten::mm", [[4, "x"], [5, 6]], ["float"] * 2, ["", ""], UNLIKE),
    "too few": ("aten::addmm", [[4, 5]], ["float"], [""], UNLIKE),
    "a result that is not told": (
        "torchvision::deform_conv2d", [[1, 2, 4, 4], [3, 2, 2, 2], [1, 8, 3, 3], [1, 4, 3, 3], [3]], ["float"] * 5,
        [""] * 5, NO_RESULT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PRICED)
def test_what_a_file_says_is_priced_and_no_more(case):
    op, shapes, types, values, expected = PRICED[case]

    found = described(op, Inputs(shapes, types, values), "cuda")

    if isinstance(expected, str):
        rule = rule_for(op)  # the kind is known all the same
        assert (found.kind, found.priced, found.lacks) == (rule.kind if rule else "", (None,) * 5, expected)
    else:
        assert (found.kind, found.shapes, found.dtype, found.priced, found.lacks) == (*expected, "")


def test_an_attention_of_which_no_file_says_whether_it_is_causal_is_a_range():
    inputs = Inputs([*QKV_DIMS, [], [], []], ["c10::Half"] * 3 + ["Scalar"] * 3, None)
    most, least = (
        described("aten::_scaled_dot_product_flash_attention", inputs, "cuda", causal) for causal in (None, True)
    )
    told = described(
        "aten::_scaled_dot_product_flash_attention",
        inputs._replace(concrete=["", "", "", "0.", "True", "False"]),
        "cuda",
    )

    # 2 heads of 4 queries and 4 keys, two products of 2 x 8 FLOPs per pair; 10 pairs of 16 are not masked
    assert most.priced[:3] == (1024, 1024, 1024)
    assert least.priced[:3] == told.priced[:3] == (640, 1024, 640)
    assert (most.causality, least.causality, told.causality) == ("unknown", "unknown", "known")
    assert (most.bound, told.bound) == (True, False)


def test_a_name_is_composed_as_torch_says():
    if not torch.__version__.startswith("2.13."):
        pytest.skip("the names are those of torch 2.13")
    names = {overload.partition(".")[0] for overload in torch._C._dispatch_get_all_op_names()}
    by_torch = {name for name in names if is_composite_name(name)}
    here = {name for name in names if is_composite(name)}

    assert by_torch - here == {name for name in by_torch if not name.startswith("aten::")} | {"aten::_fused_rms_norm"}
    assert here <= by_torch
    assert not any(name.partition("::")[2] in ("linear", "matmul", "conv2d") for name in by_torch - here)


# -- real files

REAL = Path(__file__).parents[3] / "shared" / "traces"
HAND = [
    ("v100-dlrm-rank0", "aten::mm", [[16, 512], [512, 512]], 2 * 16 * 512 * 512),
    ("a100-recommender-2023", "aten::bmm", [[1024, 96, 647], [1024, 647, 30]], 2 * 1024 * 96 * 647 * 30),
    ("h100-bert-small-inference", "aten::addmm", [[30522], [141, 512], [512, 30522]], 2 * 141 * 512 * 30522),
    ("mi300x-compiled-triton", "aten::mm", [[32768, 2048], [2048, 8192], [32768, 8192]], 2 * 32768 * 2048 * 8192),
    # every 7 x 7 window at a stride of 2, padded by 3: 112 x 112 of them
    (
        "mi300x-resnet18-ddp-train", "aten::convolution", [[512, 3, 224, 224], [64, 3, 7, 7]],
        2 * 512 * 64 * 112**2 * 3 * 49,
    ),
    # patches of 16 x 16, of which there are 14 x 14
    (
        "h100-vit-inference", "aten::convolution", [[4, 3, 224, 224], [768, 3, 16, 16], [768]],
        2 * 4 * 768 * 14**2 * 3 * 16**2,
    ),
    # both gradients at a stride of 2
    (
        "mi300x-resnet18-ddp-train", "aten::convolution_backward",
        [[512, 512, 7, 7], [512, 256, 14, 14], [512, 256, 3, 3]], 2 * 2 * 512 * 512 * 49 * 256 * 9,
    ),
    # that of the weight alone: nobody asks for the gradient of the picture
    (
        "mi300x-resnet18-ddp-train", "aten::convolution_backward",
        [[512, 64, 112, 112], [512, 3, 224, 224], [64, 3, 7, 7]], 2 * 512 * 64 * 112**2 * 3 * 49,
    ),
    # two products per pair of a query and a key
    (
        "h100-vit-inference", "aten::_scaled_dot_product_flash_attention", [[4, 12, 197, 64]] * 3,
        2 * 2 * 4 * 12 * 197**2 * 64,
    ),
    # four projections, and two products of 8 heads of 64
    (
        "h100-mlp-2025", "aten::_native_multi_head_attention", [[16, 128, 512]] * 3,
        4 * 2 * 16 * 128 * 512 * 512 + 2 * 2 * 16 * 128 * 128 * 512,
    ),
    ("v100-resnet50-train-2020", "aten::mm", [[32, 1000], [1000, 2048]], 2 * 32 * 1000 * 2048),
    (
        "v100-resnet50-train-2020", "aten::cudnn_convolution_backward_input",
        [[], [32, 512, 7, 7], [512, 512, 3, 3]], 2 * 32 * 512 * 49 * 512 * 9,
    ),
    ("b200-vllm-moe-tp8", "aten::embedding", [[25136, 2880], [888]], 0),
    ("mi300x-resnet18-ddp-train", "aten::native_batch_norm", [[512, 64, 112, 112]], 0),
    ("b200-vllm-moe-tp8", "vllm::moe_forward", [], NO_RULE),
    ("v100-resnet50-train-2020", "aten::convolution", [[32, 3, 224, 224]], NO_VALUES),
    ("a100-alexnet-no-shapes", "aten::convolution", [], NO_SHAPES),
]  # fmt: skip
BYTES = {
    "aten::embedding": (0, 888 * 8 + 2 * 888 * 2880 * 2),
    # 7 FLOPs per element; read and written whole, with 4 numbers per channel read, and 2 written in float32
    "aten::native_batch_norm": (7 * 512 * 64 * 112**2, 2 * 2 * 512 * 64 * 112**2 + 4 * 64 * 2 + 2 * 64 * 4),
}


@pytest.fixture(scope="module")
def said():
    """What a real file says of each operator."""
    files = {}

    def read(name):
        if name not in files:
            content = json.loads(gzip.decompress((REAL / f"{name}.json.gz").read_bytes()))
            events = content if isinstance(content, list) else content["traceEvents"]
            files[name] = found = defaultdict(list)
            for event in events:
                if event.get("cat") in ("cpu_op", "Operator"):
                    args = event["args"]
                    shapes = args.get("Input Dims", args.get("Input dims"))
                    inputs = Inputs(shapes, args.get("Input type"), args.get("Concrete Inputs"))
                    found[event["name"]].append(inputs)
        return files[name]

    return read


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real traces, which are not in the repository")
@pytest.mark.parametrize(("file", "op", "shapes", "expected"), HAND)
def test_calls_of_real_files_equal_arithmetic_by_hand(file, op, shapes, expected, said):
    inputs = next(each for each in said(file)[op] if each.shapes is None or each.shapes[: len(shapes)] == shapes)

    found = described(op, inputs, "cuda")

    if isinstance(expected, str):
        assert (found.priced[1], found.lacks) == (None, expected)
    else:
        assert (found.priced[0], found.priced[1], found.lacks) == (expected, expected, "")
    if op in BYTES:
        assert found.priced[3:] == BYTES[op]


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_factor_of_a_plain_product_is_not_taken_for_a_dense_one(layout, tmp_path):
    sparse, dense = torch.eye(8).to_sparse(layout=layout), torch.randn(8, 4)
    with kineto.quiet(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        torch.mm(sparse, dense)
        torch.mm(dense.t(), dense)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))

    run = gpuprof.read_trace(tmp_path / "trace.json")

    assert run.passes["count"].facts["ops_unread"].keys() >= {"aten::mm"}
    assert run.ops.loc[run.ops["op"] == "aten::mm", "flops_full"].dropna().tolist() == [2 * 4 * 8 * 4]
