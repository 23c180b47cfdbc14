"""Reports of other counters held against runs of the same models, real ones first and hand-made ones after."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from releases import rotary_product
from runs import counted_run, gpu_run
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import gpuprof
from gpuprof import GpuprofError
from gpuprof.analysis.mismatch import _Count, _factors
from gpuprof.analysis.validation import LINE_COLUMNS, validate
from gpuprof.render.validation import render_validation

REPORTS = Path(__file__).parents[1] / "data/reports"
LLAVA = REPORTS / "calflops_llava_onevision_qwen2_7b.txt"


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_reports = _load(REPORTS / "make_reports.py")


@pytest.fixture(scope="module")
def llava(llava_run):
    return validate(LLAVA, llava_run)


@pytest.fixture(scope="module")
def runs():
    """Runs of the models that make_reports.py builds, each made when it is first asked for."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = _make_run(name)
        return made[name]

    return run


def _make_run(name):
    builders = {
        "bert": make_reports.bert, "resnet": lambda: make_reports.build("resnet-50"), "gated": make_reports.gated,
        "net": make_reports.net, "net in training": make_reports.net, "net of one image": lambda: make_reports.net(1),
    }  # fmt: skip
    model, inputs = builders.get(name, make_reports.gpt2)()
    if name == "gpt2 with frozen positions":
        model.transformer.wpe.requires_grad_(False)
    if name == "gpt2 in training":
        return gpuprof.profile(model, inputs | {"labels": inputs["input_ids"]}, mode="train", passes=["count"])
    mode = "train" if name == "net in training" else "forward"
    return gpuprof.profile(model, inputs, mode=mode, passes=["count"])


def only(validation, module, quantity):
    """The one line with this figure."""
    lines = validation.lines
    found = lines[(lines["module"] == module) & (lines["quantity"] == quantity)]
    assert len(found) == 1, found
    return found.iloc[0]


def verdicts(validation):
    counts = validation.lines["verdict"].value_counts()
    return tuple(int(counts.get(name, 0)) for name in ("right", "explained", "unexplained", "unmatched", "not checked"))


# the reference report


def explained_for_rotary(run):
    """Figures that are explained rather than right where the rotary embedding runs a product.

    The report has a copy of it in each of 28 layers that does nothing, and the MACs of the one that runs.
    """
    assert rotary_product(run) in (0, 2 * 64 * 7411)
    return 2 * 28 - 1 if rotary_product(run) else 0


def test_every_figure_of_the_reference_report_is_right_or_explained(llava, llava_run):
    assert list(llava.lines.columns) == LINE_COLUMNS
    assert llava.tool == "calflops"
    explained = explained_for_rotary(llava_run)
    assert verdicts(llava) == (2723 - explained, 1615 + explained, 0, 0, 1)
    assert llava.missing == []


def test_the_reference_total_consists_of_what_the_reference_says(llava):
    assert llava.sentences.startswith(
        "calflops claims 111.8 TFLOPs for the forward, where 118.4 TFLOPs are counted (full square: 129.4 TFLOPs): "
        "they are 106.4 T of multiplications and 5.426 T of elementwise operators broadcast from the left and 18.99 G "
        "of other elementwise operators, without 12.04 T (full square: 23.05 T) of fused attention."
    )
    total = only(llava, "(total)", "flops_forward")
    products = 2 * 53_185_756_798_144
    assert total["claimed"] - products == pytest.approx(5.43e12 + 0.018e12, rel=0.002)
    assert total["causal"] - products == pytest.approx(1.0187e12 + 11.01e12 + 0.009e12, rel=0.001)
    assert total["full"] - products == pytest.approx(1.0187e12 + 22.01e12 + 0.018e12, rel=0.001)


LAYER = "language_model.model.layers.3"


@pytest.mark.parametrize(
    ("module", "quantity", "cause"),
    [
        (f"{LAYER}.input_layernorm", "flops", "elementwise operators broadcast from the left (+95.19 GFLOPs)"),
        (f"{LAYER}.self_attn", "macs", "fused attention not counted (-393.4 GMACs)"),
        (f"{LAYER}.mlp.act_fn", "flops", "other elementwise operators"),
        ("(total)", "flops_forward_backward", "backward assumed 2x the forward, where none ran"),
        ("(total)", "backward_factor", "an assumption: no backward ran"),
        (f"{LAYER}.self_attn", "macs_share", "share of the tool's own total"),
    ],
)
def test_each_kind_of_cause_on_a_line_of_the_reference_report(llava, module, quantity, cause):
    line = only(llava, module, quantity)
    assert line["verdict"] == "explained"
    assert cause in line["cause"]


def test_memory_is_not_checked(llava):
    line = only(llava, "(total)", "memory_bytes")
    assert line["verdict"] == "not checked"
    assert line["cause"].startswith("no count")


def test_modules_that_moved_between_releases_are_found(llava):
    assert only(llava, f"{LAYER}.self_attn.q_proj", "macs")["matched"].endswith(
        "language_model.layers.3.self_attn.q_proj"
    )
    assert only(llava, f"{LAYER}.self_attn.q_proj", "macs")["verdict"] == "right"


# the other counters


@pytest.mark.parametrize(
    ("report", "run", "expected", "missing"),
    [
        ("calflops_gpt2", "gpt2", (113, 43, 0, 0, 0), 8),
        ("calflops_bert_summary", "bert", (1, 5, 0, 0, 0), 0),
        ("deepspeed_bert", "bert", (212, 1, 0, 0, 158), 0),
        ("fvcore_bert_str", "bert", (67, 20, 1, 0, 0), 0),
        ("fvcore_resnet50_table", "resnet", (94, 49, 0, 0, 0), 0),
        ("ptflops_gpt2", "gpt2", (53, 47, 0, 0, 0), 8),
        ("ptflops_resnet50", "resnet", (686, 456, 0, 0, 0), 0),
        ("torch_counter_gpt2_training", "gpt2 in training", (4, 14, 0, 0, 0), 7),
        ("torch_counter_resnet50", "resnet", (296, 0, 0, 0, 0), 53),
        ("torchinfo_gpt2", "gpt2 with frozen positions", (22, 31, 0, 0, 4), 0),
        ("torchinfo_resnet50", "resnet", (7, 0, 0, 0, 4), 0),
        ("deepspeed_gated", "gated", (31, 10, 0, 0, 29), 0),
        ("deepspeed_03_net", "net", (31, 21, 0, 0, 39), 0),
        ("ptflops_04_net", "net of one image", (14, 12, 0, 0, 0), 0),
        ("mmcv_net", "net of one image", (42, 12, 0, 0, 0), 0),
        ("mmengine_net", "net of one image", (29, 14, 0, 0, 22), 0),
        ("torch_summary_net", "net of one image", (14, 2, 0, 0, 4), 0),
        ("torchsummary_net", "net of one image", (3, 0, 0, 0, 4), 0),
        ("lightning_net", "net", (30, 0, 0, 0, 0), 0),
        ("lightning_net_rich", "net", (30, 0, 0, 0, 0), 0),
        ("torchtnt_net", "net", (39, 0, 0, 0, 39), 0),
        ("torchtnt_net", "net in training", (52, 0, 0, 0, 26), 0),
        ("thop_net", "net", (19, 7, 0, 0, 0), 0),
        ("thop_net_clever", "net", (1, 1, 0, 0, 0), 0),
    ],
)
def test_verdicts_on_the_reports_of_other_counters(runs, report, run, expected, missing):
    validation = validate(REPORTS / f"{report}.txt", runs(run))
    assert (verdicts(validation), len(validation.missing)) == (expected, missing)
    assert validation.mismatch == ""


# of another workload


def of_sizes(name, batch, length, mode="forward"):
    """A run of what make_reports.py builds, with other inputs; they say their sizes, as a preset's do."""
    model, inputs = getattr(make_reports, name)()
    ids = torch.randint(0, 1000, (batch, length))
    inputs = {"input_ids": ids} | ({"labels": ids} if mode == "train" else {})
    run = gpuprof.profile(model, inputs, mode=mode, passes=["count"])
    return replace(run, workload={**run.workload, "batch_size": batch, "seq_len": length})


AGREE = "Parameters agree, products are"


@pytest.mark.parametrize(
    ("report", "sizes", "sentence"),  # all reports are of batch 2 and sequence 64
    [
        (
            "calflops_gpt2", ("gpt2", 1, 64),
            f"{AGREE} 2.00 x those of this workload: another batch size (--batch-size 2) or another sequence length "
            "(--seq-len 128)?",  # calflops leaves fused attention out, which alone would tell
        ),
        (
            "deepspeed_bert", ("bert", 4, 64),
            f"{AGREE} 0.500 x those of this workload: another batch size (--batch-size 2)?",
        ),
        (
            "deepspeed_bert", ("bert", 2, 128),
            f"{AGREE} 0.500 x those of this workload, those of attention 0.250 x: another sequence length "
            "(--seq-len 64)?",
        ),
        (
            "deepspeed_bert", ("bert", 1, 256),
            f"{AGREE} 0.500 x those of this workload, those of attention 0.125 x: another batch size (--batch-size 2) "
            "and sequence length (--seq-len 64)?",
        ),
        (
            "fvcore_bert_str", ("bert", 1, 64),
            f"{AGREE} 2.00 x those of this workload: another batch size (--batch-size 2) or another sequence length "
            "(--seq-len 128) or FLOPs printed as MACs?",
        ),
        (
            "torch_counter_gpt2_training", ("gpt2", 2, 64),
            "Products are 3.00 x those of this workload: of forward and backward (--mode train)?",
        ),
        (
            "torch_counter_gpt2_training", ("gpt2", 1, 64),
            "Products are 6.00 x those of this workload: forward and backward (--mode train) and another batch size "
            "(--batch-size 2) or another batch size (--batch-size 6) or another sequence length (--seq-len 384)?",
        ),
        ("calflops_gpt2", ("bert", 2, 64), "Parameters differ (claimed 53.56 M, counted 38.64 M): another model?"),
        (
            "fvcore_bert_str", ("gpt2", 2, 64),
            "25 of the report's 45 modules are not in this model: another model?",
        ),
    ],
)  # fmt: skip
def test_a_report_of_another_workload_is_said_in_one_line(report, sizes, sentence):
    validation = validate(REPORTS / f"{report}.txt", of_sizes(*sizes))

    assert validation.mismatch == sentence
    assert sum(verdicts(validation)[2:4]) > 0  # the verdicts stay
    assert render_validation(validation).replace("\n", " ").startswith(f"{sentence} {validation.sentences[:20]}")
    for format in ("table", "markdown", "html", "json"):
        said = " ".join(render_validation(validation, format).split()).replace("&#x27;", "'")
        assert sentence in said


def test_another_number_of_layers_is_no_other_model(runs):
    model, inputs = make_reports.build("gpt2", n_layer=3, use_cache=False)
    validation = validate(
        REPORTS / "calflops_gpt2.txt", gpuprof.profile(model, inputs, passes=["count"], mode="forward")
    )

    assert validation.mismatch == (  # a layer has 7,087,872 parameters
        "Parameters differ (claimed 53.56 M, counted 60.65 M): the same layers, another number of them?"
    )


BLOCK = "transformer.h.0"


@pytest.mark.parametrize(
    ("report", "run", "module", "quantity", "cause"),
    [
        ("calflops_bert_summary", "bert", "(total)", "flops_forward_backward", "backward assumed 2.5x the forward"),
        ("deepspeed_bert", "bert", "(total)", "params_of_model", "outside the DeepSpeed engine"),
        ("fvcore_bert_str", "bert", "bert.embeddings", "macs", "other elementwise operators (+491.5 KMACs)"),
        ("fvcore_bert_str", "bert", "cls", "params", "tied parameters counted only where they are first"),
        ("ptflops_gpt2", "gpt2", f"{BLOCK}.mlp", "macs", "module types not covered"),
        ("ptflops_gpt2", "gpt2", "transformer.wte", "params", "module types not covered"),
        ("ptflops_resnet50", "resnet", "(total)", "macs_forward", "functional operators counted again (+10.51 MMACs)"),
        (
            "torch_counter_gpt2_training", "gpt2 in training", f"{BLOCK}.attn", "flops",
            "fused attention not counted (-75.50 MFLOPs)",
        ),
        ("torchinfo_gpt2", "gpt2", "(total)", "params", "tied parameters counted twice"),
        ("torchinfo_gpt2", "gpt2", "lm_head", "macs", "linear layers without the sequence length"),
        ("torchinfo_gpt2", "gpt2", "transformer.wte", "macs", "embedding counted as a multiplication"),
        ("torchinfo_gpt2", "gpt2", f"{BLOCK}.mlp.c_fc", "macs", "Conv1D taken for a convolution (+14.21 GMACs)"),
        ("torchinfo_gpt2", "gpt2", "", "params_own_share", "tied parameters subtracted twice"),
        # 2 x 24 tokens: 512 SiLUs each, and 5 operations for each of 32 elements of two norms
        (
            "deepspeed_gated", "gated", "(total)", "flops_forward",
            f"elementwise silu (+{48 * 512 / 1000:.2f} KFLOPs), elementwise native_layer_norm (+15.36 KFLOPs)",
        ),
        ("deepspeed_03_net", "net", "stem", "macs", "bias of convolution (+1.024 KMACs)"),
        ("mmcv_net", "net of one image", "stem", "macs_share", "share of the tool's own total"),
        ("thop_net", "net", "pool", "macs", "other elementwise operators (+1.040 KMACs)"),
        ("torchtnt_net", "net", "head", "macs_backward", None),
    ],
)  # fmt: skip
def test_causes_in_the_reports_of_other_counters(runs, report, run, module, quantity, cause):
    line = only(validate(REPORTS / f"{report}.txt", runs(run)), module, quantity)
    if cause is None:
        assert (line["verdict"], line["cause"]) == ("not checked", "no backward ran in this workload")
        return
    assert line["verdict"] == "explained"
    assert cause in line["cause"]


def test_the_total_of_deepspeed_consists_of_multiplications_and_what_is_done_element_by_element(runs):
    """Of 48 tokens and 4 heads of 8; DeepSpeed 0.19.8 returned 5,299,200 FLOPs and 2,629,632 MACs."""
    tokens, attention = 48, 2 * 2 * 4 * 24 * 24 * 8
    macs = tokens * (32 * 96 + 32 * 32 + 3 * 32 * 512) + attention
    silu, norms = tokens * 512, 2 * 5 * tokens * 32
    flops = 2 * macs + silu + norms
    rows = [("(total)", "", "flops_forward", flops, 0.5), ("(total)", "", "macs_forward", macs, 0.5)]
    validation = validate(report_of("deepspeed", rows), runs("gated"))
    assert (macs, flops) == (2_629_632, 5_299_200)
    assert list(validation.lines["cause"]) == [
        "attention over the whole square, elementwise silu (+24.58 KFLOPs), "
        "elementwise native_layer_norm (+15.36 KFLOPs)",
        "attention over the whole square",
    ]
    wrong = report_of("deepspeed", [("(total)", "", "flops_forward", flops + 1, 0.5)])
    assert validate(wrong, runs("gated")).lines.iloc[0]["verdict"] == "unexplained"


def test_what_a_total_of_deepspeed_is_made_of_is_in_the_sentence(runs):
    assert validate(REPORTS / "deepspeed_gated.txt", runs("gated")).sentences.startswith(
        "deepspeed claims 5.300 MFLOPs for the forward, where 5.189 MFLOPs are counted (full square: 5.259 MFLOPs): "
        "they are 5.259 M of multiplications and 24.58 K of elementwise silu and 15.36 K of elementwise "
        "native_layer_norm."
    )


def test_of_the_reports_of_several_ranks_one_is_judged_and_it_is_said(runs, tmp_path):
    lines = (REPORTS / "thop_net.txt").read_text().split("\n")
    (tmp_path / "log.txt").write_text("\n".join(f"{rank}: {line}" for line in lines for rank in (3, 2)))
    validation = validate(tmp_path / "log.txt", runs("net"))
    assert verdicts(validation) == (19, 7, 0, 0, 0)
    assert validation.sentences.endswith(" 2 ranks printed the same report: this is of '2'.")


def test_modules_that_share_a_line_of_the_report_are_shown_apart(runs):
    """thop prints all modules in one line; layers that a report folds are one line too, and stay one."""
    validation = validate(REPORTS / "thop_net.txt", runs("net"))
    tree = [line.split() for line in render_validation(validation, "tree").splitlines() if line.startswith("   7 ")]
    assert [words[1:3] for words in tree if words[1] in ("stem:", "conv:", "bn:")] == [
        ["stem:", "27648.0"], ["conv:", "73728.0"], ["bn:", "4096.0"], ["conv:", "73728.0"], ["bn:", "4096.0"]
    ]  # fmt: skip
    assert len(tree) == 12
    assert render_validation(validation, "markdown").count("| 73728.0 |") == 2
    assert "(2 x)" in render_validation(validate(REPORTS / "ptflops_gpt2.txt", runs("gpt2")), "tree")


def test_deepspeed_counts_the_whole_square(runs):
    claims = report_of("deepspeed", [("", "GPT2LMHeadModel", "macs", 6_777_569_280, 5e5)])
    assert validate(claims, runs("gpt2")).lines.iloc[0]["cause"] == "attention over the whole square"


def test_a_backward_counted_by_the_tool_is_in_the_sentence(runs):
    sentences = validate(REPORTS / "torch_counter_gpt2_training.txt", runs("gpt2 in training")).sentences
    assert "claims 40.51 GFLOPs for forward and backward, where 40.59 GFLOPs are counted" in sentences


class Grouped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(8, 8, 3)
        self.grouped = torch.nn.Conv2d(8, 8, 3, groups=4)

    def forward(self, x):
        return self.grouped(self.first(x))


class Checkpointed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(64, 64)
        self.outer = torch.nn.Linear(64, 64)

    def forward(self, x):
        return self.outer(checkpoint(lambda y: self.inner(y).relu(), x, use_reentrant=False))


@pytest.mark.parametrize(
    ("model", "shape", "module", "cause"),
    [
        (Grouped(), (2, 8, 12, 12), "grouped", "weight gradient of grouped convolutions counted per group"),
        (Checkpointed(), (16, 64), "inner", "recompute counted as backward"),
    ],
)
def test_what_flop_counter_mode_adds_to_a_backward(model, shape, module, cause):
    x = torch.randn(shape)
    run = gpuprof.profile(model, {"x": x}, mode="train", passes=["count"])
    with FlopCounterMode(display=False, depth=None) as counter:
        model(x).float().mean().backward()
    root = type(model).__name__
    counts = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items() if name != "Global"}
    rows = [(name.removeprefix(root).removeprefix("."), "", "flops", flops, 0.5) for name, flops in counts.items()]
    validation = validate(report_of("torch-counter", rows), run)
    for name in ("", module):
        line = only(validation, name, "flops")
        assert (line["verdict"], line["error_percent"] > 0) == ("explained", True)
        assert line["cause"].startswith(cause)


# reports made by hand


def report_of(tool, rows):
    """Claims as `gpuprof.read_report` returns them, from (module, class, quantity, value, precision)."""
    claims = pd.DataFrame(
        [(place, *row, str(row[3])) for place, row in enumerate(rows, start=1)],
        columns=["line", "module", "class", "quantity", "value", "precision", "text"],
    )
    claims.attrs = {"tool": tool, "path": "", "notes": []}
    return claims


def test_a_wrong_figure_is_unexplained_and_its_error_right(tmp_path, llava_run):
    text = LLAVA.read_text()
    assert text.count("3.82 GMACs") == 1
    (tmp_path / "report.txt").write_text(text.replace("3.82 GMACs", "3.92 GMACs"))
    validation = validate(tmp_path / "report.txt", llava_run)
    explained = explained_for_rotary(llava_run)
    assert verdicts(validation) == (2722 - explained, 1615 + explained, 1, 0, 1)
    line = validation.lines[validation.lines["verdict"] == "unexplained"].iloc[0]
    assert (line["module"], line["quantity"], line["cause"]) == ("language_model.lm_head", "macs", "")
    assert line["error_percent"] == pytest.approx(100 * (3.92e9 / (7 * 3584 * 152128) - 1))


def test_a_line_without_a_module_is_unmatched(runs):
    rows = [("", "GPT2LMHeadModel", "params", 53_561_088, 0.5), ("adapter", "LoraLayer", "params", 1234, 0.5)]
    validation = validate(report_of("calflops", rows), runs("gpt2"))
    assert list(validation.lines["verdict"]) == ["right", "unmatched"]
    assert validation.lines.iloc[1]["matched"] == ""


def test_a_module_that_no_line_stands_for_is_missing(runs):
    rows = [
        ("", "GPT2LMHeadModel", "params", 53_561_088, 0.5),
        ("transformer", "GPT2Model", "params", 53_561_088, 0.5),
        ("transformer.h", "ModuleList", "params", 14_175_744, 0.5),
        ("transformer.wte", "Embedding", "params", 38_597_376, 0.5),
    ]
    assert validate(report_of("calflops", rows), runs("gpt2")).missing == [
        "transformer.wpe", "transformer.ln_f", "lm_head"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("quantity", "value", "cause"),
    [
        ("flops", 4_940_464_128, "MACs printed as FLOPs"),
        ("macs", 9_880_928_256, "FLOPs printed as MACs"),
        ("params", 38_597_376 + 1, None),
        ("macs", 4_940_464_128 + 100, None),
    ],
)
def test_a_cause_is_given_only_where_it_gives_the_figure(runs, quantity, value, cause):
    line = validate(report_of("thop", [("lm_head", "Linear", quantity, value, 0.5)]), runs("gpt2")).lines.iloc[0]
    assert (line["verdict"], line["cause"]) == (("explained", cause) if cause else ("unexplained", ""))


def test_trainable_parameters_only(runs):
    claims = report_of("calflops", [("", "GPT2LMHeadModel", "params", 53_561_088 - 786_432, 0.5)])
    line = validate(claims, runs("gpt2 with frozen positions")).lines.iloc[0]
    assert (line["verdict"], line["cause"]) == ("explained", "trainable parameters only")


def test_the_output_layer_at_other_positions(llava_run):
    everywhere = 7411 * 3584 * 152128
    claims = report_of("deepspeed", [("lm_head", "Linear", "macs", everywhere, 0.5)])
    line = validate(claims, llava_run).lines.iloc[0]
    assert line["verdict"] == "explained"
    assert line["cause"].startswith("output layer at every position")


def test_an_embedding_taken_for_a_product(runs):
    claims = report_of("deepspeed", [("transformer.wte", "Embedding", "flops", 2 * 128 * 768 * 50257, 0.5)])
    assert "embedding counted as a multiplication" in validate(claims, runs("gpt2")).lines.iloc[0]["cause"]


def test_numbered_paths_are_taken_in_order(runs):
    rows = [(f"1-1.2-4.3-{place}", "GPT2Block", "params", 7_087_872, 0.5) for place in (1, 2, 3)]
    validation = validate(report_of("torchinfo", rows), runs("gpt2"))
    assert list(validation.lines["matched"]) == ["transformer.h.0", "transformer.h.1", ""]


def test_a_run_that_was_not_counted_is_refused():
    run = gpuprof.profile(torch.nn.Linear(4, 4), {"input": torch.randn(2, 4)}, mode="forward", passes=["time"])
    with pytest.raises(GpuprofError, match="this run was not counted"):
        validate(LLAVA, run)


def test_executed_flops_stand_beside_the_claim_where_counters_were_read():
    """The head's forward executed 3000 FLOPs where 2000 were counted: 1500 MACs."""
    claims = report_of("deepspeed", [("head", "Linear", "macs", 1000.0, 0.5)])

    line = validate(claims, counted_run()).lines.iloc[0]
    assert (line["causal"], line["executed"], line["verdict"]) == (1000, 1500, "right")
    assert validate(claims, gpu_run()).lines.iloc[0]["executed"] is None


def test_a_report_without_attention_is_of_no_sequence_of_a_millionth():
    # 6 x the products with weights; attention, 20 of 100, is not in the report but for a rounding of 0.0006
    counts = [_Count(600.0, 100.0, 0.0)] * 3 + [_Count(480.0006, 100.0, 20.0)] * 3

    assert _factors(counts) == (6.0, None)
