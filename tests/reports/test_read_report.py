"""Figures are compared with what stands in the files of tests/data/reports; make_reports.py there says where from."""

import csv
import random
from pathlib import Path
from typing import get_type_hints

import pytest

from gpuprof.cli.validate import validate
from gpuprof.errors import GpuprofError
from gpuprof.reports import Claim, read_report
from gpuprof.reports.figures import claim, figure, share
from gpuprof.reports.reading import KINDS, PLAIN, TOOLS

DATA = Path(__file__).parents[1] / "data/reports"
LLAVA = "calflops_llava_onevision_qwen2_7b"
TREES = [LLAVA, "calflops_gpt2", "deepspeed_bert", "ptflops_gpt2", "fvcore_bert_str", "ptflops_04_net", "mmcv_net"]
TABLES = ["fvcore_resnet50_table", "torch_counter_gpt2_training", "torchinfo_gpt2", "lightning_net", "torchtnt_net"]
TOTAL = "(total)"


def read(name):
    return read_report(DATA / f"{name}.txt")


def text_of(name):
    return (DATA / f"{name}.txt").read_text()


@pytest.fixture
def read_text(tmp_path):
    def read(text):
        path = tmp_path / "report.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_report(path)

    return read


@pytest.fixture
def refused(read_text):
    """Why a text is refused: one line, without the name of the file."""

    def refuse(text):
        with pytest.raises(GpuprofError) as caught:
            read_text(text)
        message = str(caught.value)
        assert "\n" not in message
        return message[message.index("report.txt") + len("report.txt") :].lstrip()

    return refuse


def one(frame, module, quantity):
    """The single row of a module and quantity, as (line, class, value, precision, text)."""
    rows = frame[(frame["module"] == module) & (frame["quantity"] == quantity)]
    assert len(rows) == 1
    row = rows.iloc[0]
    return row["line"], row["class"], row["value"], row["precision"], row["text"]


@pytest.mark.parametrize(
    ("text", "unit", "value", "precision"),
    [
        ("53.19 TMACs", "MACs", 53.19e12, 0.005e12),
        ("53.1858 TMACs", "MACs", 53.1858e12, 0.00005e12),
        ("7.9 GMACs", "MACs", 7.9e9, 0.05e9),
        ("905.97 MMACs", "MACs", 905.97e6, 5e3),
        ("0 MACs", "MACs", 0, 0.5),
        ("12 MACs", "MACs", 12, 0.5),
        ("8.03 B", "", 8.03e9, 5e6),
        ("9.41 k", "", 9410, 5),
        ("1.2 PFLOPS", "FLOPS", 1.2e15, 0.05e15),
        ("1.23457e+06 TMACs", "MACs", 1.23457e18, 5e12),
        ("364.92 ms", "s", 0.36492, 5e-6),
        ("945.81 us", "s", 945.81e-6, 5e-9),
        ("25,557,032", "", 25557032, 0.5),
        ("0.0 Mac", "Mac", 0, 0.05),
    ],
)
def test_a_figure_has_its_value_and_half_its_last_digit(text, unit, value, precision):
    assert figure(text, unit) == Claim(value, precision)


@pytest.mark.parametrize("text", ["", "N/A", "nan GMACs", "1.3 XMACs", "1.3 GFLOPS", "1.2.3 GMACs", "GMACs", "1.3 G"])
def test_not_a_figure(text):
    assert figure(text, "MACs") is None


def test_a_percentage_is_a_share():
    assert share("8.696%") == Claim(0.08696, 0.000005)
    assert share("-41.88%") == Claim(-0.4188, 0.00005)
    assert share("8.696") is None


def test_a_claim_with_an_exponent():
    assert claim("4.09", 9) == Claim(4.09e9, 5e6)


# --- calflops: the report of a user's own run


def test_columns_and_attributes():
    frame = read(LLAVA)

    assert list(frame.columns) == ["line", "module", "class", "quantity", "value", "precision", "text"]
    assert frame.attrs["tool"] == "calflops"
    assert frame.attrs["path"] == str(DATA / f"{LLAVA}.txt")
    assert "FLOPS in this report are counts, not rates" in frame.attrs["notes"]
    assert frame["value"].dtype == frame["precision"].dtype == float


def test_totals_of_calflops():
    frame = read(LLAVA)

    assert one(frame, TOTAL, "backward_factor") == (7, "", 2.0, 0.005, "2.00")
    assert one(frame, TOTAL, "params") == (9, "", 8.03e9, 5e6, "8.03 B")
    assert one(frame, TOTAL, "macs_forward") == (10, "", 53.1858e12, 50e6, "53.1858 TMACs")
    assert one(frame, TOTAL, "flops_forward") == (11, "", 111.817e12, 500e6, "111.817 TFLOPS")
    assert one(frame, TOTAL, "macs_forward_backward") == (12, "", 159.557e12, 500e6, "159.557 TMACs")
    assert one(frame, TOTAL, "flops_forward_backward") == (13, "", 335.45e12, 5e9, "335.45 TFLOPS")
    assert one(frame, TOTAL, "memory_bytes")[2:] == (17.4525e9, 50e3, "17.4525 GBytes")


def test_branch_and_leaf_lines_of_calflops():
    frame = read(LLAVA)
    projector = "multi_modal_projector"

    assert one(frame, "", "macs") == (
        24, "LlavaOnevisionForConditionalGeneration", 53.19e12, 5e9, "53.19 TMACs"
    )  # fmt: skip
    assert one(frame, projector, "flops") == (
        61, "LlavaOnevisionMultiModalProjector", 395.97e9, 5e6, "395.97 GFLOPS"
    )  # fmt: skip
    assert one(frame, f"{projector}.linear_2", "params") == (64, "Linear", 12.85e6, 5e3, "12.85 M")
    assert one(frame, f"{projector}.linear_2", "params_share") == (64, "Linear", 0.0016, 0.00005, "0.16%")
    assert one(frame, f"{projector}.act", "flops") == (63, "GELUActivation", 0, 0.5, "0 FLOPS")
    assert one(frame, "language_model.model.rotary_emb", "macs")[2:] == (474.3e3, 50, "474.3 KMACs")


def test_folded_layers_are_expanded():
    frame = read(LLAVA)
    vision, language = "vision_tower.vision_model.encoder.layers", "language_model.model.layers"
    macs = frame[frame["quantity"] == "macs"].set_index("module")

    assert sorted(macs.index[macs["class"] == "SiglipEncoderLayer"]) == sorted(f"{vision}.{i}" for i in range(26))
    assert sorted(macs.index[macs["class"] == "Qwen2DecoderLayer"]) == sorted(f"{language}.{i}" for i in range(28))
    queries = macs.loc[[f"{language}.{i}.self_attn.q_proj" for i in range(28)]]
    assert set(queries["value"]) == {95.19e9}
    assert queries["line"].nunique() == 1
    # by hand: 12 modules with figures in a SigLIP layer, 14 in a Qwen2 layer, 18 elsewhere
    assert len(macs) == 26 * 12 + 28 * 14 + 18


def test_every_row_of_the_reference_table():
    frame = read(LLAVA)
    by_place = {(row.module, row.quantity): row for row in frame.itertuples() if row.module != TOTAL}
    scale = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
    seen = 0
    with (DATA / f"{LLAVA}.tsv").open() as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            number = {"0-25": 26, "0-27": 28}
            fold = next((part for part in row["module"].split(".") if part in number), None)
            assert int(row["instances"]) == number.get(fold, 1)
            for layer in range(number.get(fold, 1)):
                module = row["module"].replace(fold, str(layer)) if fold else row["module"]
                for column, quantity in (("params", "params"), ("macs", "macs"), ("flops", "flops")):
                    if not row[column]:
                        assert (module, quantity) not in by_place
                        continue
                    figure, _, unit = row[column].partition(" ")
                    claimed = by_place.pop((module, quantity))
                    percentage = by_place.pop((module, f"{quantity}_share"))
                    assert claimed._3 == row["class"]
                    assert claimed.value == pytest.approx(float(figure) * scale.get(unit, 1), rel=1e-15)
                    assert percentage.value == pytest.approx(float(row[f"{column}_pct"]) / 100, rel=1e-15)
                    seen += 2
    assert not by_place
    assert seen == len(frame[frame["module"] != TOTAL])


def test_a_module_that_prints_itself_has_no_figures():
    frame = read("calflops_gpt2")

    assert one(frame, "transformer.h.1.attn", "macs") == (35, "GPT2Attention", 301.99e6, 5e3, "301.99 MMACs")
    assert "transformer.h.1.attn.c_attn" not in set(frame["module"])  # Conv1D(nf=2304, nx=768)


def test_calflops_without_the_detailed_part():
    frame = read("calflops_bert_summary")

    assert set(frame["module"]) == {TOTAL}
    assert one(frame, TOTAL, "backward_factor") == (7, "", 2.5, 0.005, "2.50")
    assert one(frame, TOTAL, "macs_forward") == (10, "", 4.89e9, 5e6, "4.89 GMACs")


# --- DeepSpeed


def test_deepspeed():
    frame = read("deepspeed_bert")
    query = "bert.encoder.layer.0.attention.self.query"

    assert frame.attrs["tool"] == "deepspeed"
    assert one(frame, TOTAL, "params") == (12, "", 38.64e6, 5e3, "38.64 M")
    assert one(frame, TOTAL, "params_of_model")[2] == 0
    assert any("outside the DeepSpeed engine" in note for note in frame.attrs["notes"])
    assert one(frame, TOTAL, "flops_forward")[2] == 9.83e9
    assert one(frame, query, "params")[1:] == ("Linear", 590.59e3, 5, "590.59 K")
    assert one(frame, query, "macs")[2] == 75.5e6
    # 3 projections of 2 x 64 x 768^2 and attention's two products of 2 x 12 x 64 x 64 x 64
    assert one(frame, query.removesuffix(".query"), "macs")[2] == round(3 * 2 * 64 * 768**2 + 2 * 2 * 12 * 64**3, -4)
    assert len(frame[frame["quantity"] == "latency"]) == len(frame[frame["quantity"] == "flops_per_s"])
    assert frame[frame["quantity"] == "flops"].empty


def test_latencies_and_rates_of_deepspeed():
    frame = read("deepspeed_bert")
    lines = text_of("deepspeed_bert").splitlines()

    for quantity, unit in (("latency", "s"), ("flops_per_s", "FLOPS")):
        rows = frame[(frame["quantity"] == quantity) & (frame["module"] == "bert.encoder")]
        assert len(rows) == 1
        printed = rows.iloc[0]["text"]
        assert printed in lines[rows.iloc[0]["line"] - 1]
        number, prefixed = printed.split()
        factor = {"us": 1e-6, "ms": 1e-3, "s": 1, "MFLOPS": 1e6, "GFLOPS": 1e9, "TFLOPS": 1e12}[prefixed]
        assert prefixed.endswith(unit)
        assert rows.iloc[0]["value"] == pytest.approx(float(number) * factor, rel=1e-15)


# an older layout, as DeepSpeed's tutorial still shows it (docs/_tutorials/flops-profiler.md), gaps and all
OLD_DEEPSPEED = """\
-------------------------- DeepSpeed Flops Profiler --------------------------
world size:                                                   1
params per gpu:                                               336.23 M
params of model = params per GPU * mp_size:                   336.23 M
fwd MACs per GPU:                                             3139.93 G
fwd flops per GPU:                                            6279.86 G
fwd flops of model = fwd flops per GPU * mp_size:             6279.86 G
fwd latency:                                                  76.67 ms
bwd latency:                                                  108.02 ms
fwd FLOPS per GPU = fwd flops per GPU / fwd latency:          81.9 TFLOPS
bwd FLOPS per GPU = 2 * fwd flops per GPU / bwd latency:      116.27 TFLOPS
fwd+bwd FLOPS per GPU = 3 * fwd flops per GPU / (fwd+bwd latency):   102.0 TFLOPS
step latency:                                                 34.09 us
iter latency:                                                 184.73 ms
samples/second:                                               433.07
------------------------------ Detailed Profile per GPU ------------------------------
BertForPreTrainingPreLN(
  336.23 M, 100.00% Params, 3139.93 GMACs, 100.00% MACs, 76.39 ms, 100.00% latency, 82.21 TFLOPS,
  (bert): BertModel(
    335.15 M, 99.68% Params, 3092.96 GMACs, 98.50% MACs, 34.29 ms, 44.89% latency, 180.4 TFLOPS,
    (embeddings): BertEmbeddings(...)
    (query): Linear(1.05 M, 0.31% Params, 10.74 GMACs, 0.34% MACs, 182.39 us, 0.24% latency, 117.74 TFLOPS,...)
    ...
    (dense): Linear(1.05 M, 0.31% Params, 10.74 GMACs, 0.34% MACs, 64.13 us, 0.08% latency, 334.84 TFLOPS, ...)
  )
  (cls): BertPreTrainingHeads(...)
)
"""


def test_older_deepspeed(read_text):
    frame = read_text(OLD_DEEPSPEED)

    assert one(frame, TOTAL, "backward_factor") == (11, "", 2, 0.5, "2")
    assert one(frame, TOTAL, "latency_backward") == (9, "", 0.10802, 5e-6, "108.02 ms")
    assert one(frame, TOTAL, "flops_per_s_forward_backward")[2:4] == (102e12, 0.05e12)
    assert one(frame, TOTAL, "latency_optimizer")[2] == 34.09e-6
    assert one(frame, TOTAL, "samples_per_s")[2] == 433.07
    assert one(frame, TOTAL, "macs_forward") == (5, "", 3139.93e9, 5e6, "3139.93 G")
    assert one(frame, "bert.query", "latency") == (22, "Linear", 182.39e-6, 5e-9, "182.39 us")
    assert one(frame, "bert.query", "macs_share") == (22, "Linear", 0.0034, 0.00005, "0.34%")
    assert one(frame, "bert.dense", "flops_per_s")[2] == 334.84e12
    assert one(frame, "bert", "latency_share")[2] == 0.4489
    assert "bert.embeddings" not in set(frame["module"])


# --- ptflops


def test_ptflops():
    frame = read("ptflops_resnet50")
    stem = "resnet.embedder.embedder"

    assert frame.attrs["tool"] == "ptflops"
    assert one(frame, TOTAL, "macs_forward")[2:] == (4.13e9, 5e6, "4.13 GMac")
    assert one(frame, TOTAL, "params")[2:] == (25.56e6, 5e3, "25.56 M")
    assert one(frame, "", "macs_share")[2] == 0.99746  # the residual additions belong to no module
    # 112 x 112 positions of a 7 x 7 convolution from 3 to 64 channels
    assert one(frame, f"{stem}.convolution", "macs")[1:3] == ("Conv2d", round(112 * 112 * 7 * 7 * 3 * 64, -4))
    assert one(frame, f"{stem}.normalization", "params")[2:] == (128, 0.5, "128")
    assert one(frame, f"{stem}.activation", "macs")[2:] == (802.82e3, 5, "802.82 KMac")
    assert one(frame, "classifier.0", "macs")[2:] == (0, 0.05, "0.0 Mac")


def test_ptflops_folds_and_skips_what_it_does_not_know():
    frame = read("ptflops_gpt2")

    assert one(frame, "transformer.h.0.ln_1", "params") == one(frame, "transformer.h.1.ln_1", "params")
    assert one(frame, "transformer.wte", "params")[2] == 0  # really 38,597,376
    assert one(frame, "lm_head", "params")[2:] == (38.6e6, 0.05e6, "38.6 M")


# --- fvcore


def test_fvcore_table():
    frame = read("fvcore_resnet50_table")

    assert frame.attrs["tool"] == "fvcore"
    assert one(frame, "", "params") == (3, "", 25.557e6, 500, "25.557M")
    assert one(frame, "", "macs") == (3, "", 4.112e9, 500e3, "4.112G")
    assert one(frame, "resnet.embedder.embedder.convolution", "macs")[2:] == (0.118e9, 500e3, "0.118G")
    assert one(frame, "resnet.embedder.embedder.normalization", "params")[2:] == (128, 0.5, "0.128K")
    assert not frame["module"].str.endswith("weight").any()


def test_fvcore_table_of_a_model_with_one_child_and_indentation(read_text):
    frame = read_text(
        "| module   | #parameters | #flops  | #activations |\n"
        "|:---------|:------------|:--------|:-------------|\n"
        "| net      | 0.44K       | 0.4K    | 12           |\n"
        "|  fc1     |  0.11K      |  100    |              |\n"
        "|   fc1.a  |   0.11K     |         |  7           |\n"
    )

    assert one(frame, "", "params")[2] == 440
    assert one(frame, "", "activations")[2] == 12
    assert one(frame, "net.fc1", "macs")[2] == 100
    assert one(frame, "net.fc1.a", "activations")[2] == 7
    assert "the first row stands for the model and for 'net' alike" in frame.attrs["notes"]
    assert len(frame) == 7


def test_fvcore_text():
    frame = read("fvcore_bert_str")
    query = "bert.encoder.layer.1.attention.self.query"

    assert frame.attrs["tool"] == "fvcore"
    assert one(frame, "", "macs") == (3, "BertForMaskedLM", 4.89e9, 5e6, "4.89G")
    assert one(frame, query, "macs")[1:] == ("Linear", 75.5e6, 50e3, "75.5M")
    assert one(frame, query.replace("query", "dropout"), "params")[2] == 0
    assert frame[(frame["module"] == query.replace("query", "dropout")) & (frame["quantity"] == "macs")].empty
    assert any(note.startswith("2 modules without a figure (N/A)") for note in frame.attrs["notes"])


# --- torch's FlopCounterMode


def test_torch_counter():
    frame = read("torch_counter_resnet50")
    stem = "resnet.embedder.embedder.convolution"

    assert frame.attrs["tool"] == "torch-counter"
    assert one(frame, "", "flops") == (3, "ResNetForImageClassification", 8178.369e6, 500, "8178.369M")
    assert one(frame, stem, "flops")[2] == round(2 * 112 * 112 * 7 * 7 * 3 * 64, -3)
    assert one(frame, stem, "flops_share")[2:] == (0.0289, 0.00005, "2.89%")
    assert not frame["module"].str.contains("aten").any()


def test_torch_counter_in_training():
    frame = read("torch_counter_gpt2_training")

    # forward, and the gradients of input and weight: 6 FLOPs for each of 128 positions and weight
    assert one(frame, "lm_head", "flops") == (6, "", round(6 * 128 * 768 * 50257, -6), 500e3, "29.643B")
    assert one(frame, "transformer.h.1.mlp", "flops")[2] == round(6 * 128 * 2 * 768 * 3072, -6)


def test_torch_counter_with_flops_outside_the_model(read_text):
    header = "Module        FLOP    % Total\n----------  -------  ---------\n"

    frame = read_text(
        header + "Global       2.048K    100.00%\n - aten.mm   2.048K    100.00%\n Net         1.024K     50.00%\n"
    )

    assert one(frame, TOTAL, "flops")[2] == 2048
    assert one(frame, "", "flops")[1:3] == ("Net", 1024)


def test_torch_counter_of_two_models_and_of_nothing(read_text):
    header = "Module        FLOP    % Total\n----------  -------  ---------\n"

    two = read_text(header + "A.x  1.024K     50.00%\nB  1.024K     50.00%\n")
    none = read_text(header + "Global     0         0%\n")

    assert list(two["module"].unique()) == ["A.x", "B"]
    assert any("several models (A, B)" in note for note in two.attrs["notes"])
    assert one(none, TOTAL, "flops")[2:] == (0, 0.5, "0")


# --- torchinfo


def test_torchinfo():
    frame = read("torchinfo_gpt2")

    assert frame.attrs["tool"] == "torchinfo"
    assert one(frame, "lm_head", "params") == (35, "Linear", 38597376, 0.5, "38,597,376")
    assert one(frame, "transformer.wpe", "params") == (7, "Embedding", 786432, 0.5, "(786,432)")
    assert one(frame, "", "params_own_share")[1:4] == ("GPT2LMHeadModel", -0.4188, 0.00005)  # tied weights, twice
    # Conv1D is taken for a convolution: 64 x 2 x 2304 positions; right are 2 x 64 x 1,769,472
    assert one(frame, "transformer.h.1.attn.c_attn", "macs")[2] == 1771776 * 2 * 2304
    assert "transformer.h.0.attn" not in set(frame["module"])
    assert one(frame, TOTAL, "params_frozen")[2] == 786432
    assert one(frame, TOTAL, "macs_forward")[2:4] == (54.58e9, 5e6)
    assert one(frame, TOTAL, "memory_bytes")[2:4] == (439.37e6, 5e3)


def test_torchinfo_without_names():
    frame = read("torchinfo_resnet50")

    assert one(frame, "1-1.2-2.3-3", "params") == (10, "ModuleList", 23498496, 0.5, "23,498,496")
    assert any("row_settings=['var_names']" in note for note in frame.attrs["notes"])


def test_torchinfo_in_ascii_with_parameters_of_its_own_recursion_and_nested_shapes(read_text):
    frame = read_text(
        "======================================================================\n"
        "Layer (type (var_name))        Output Shape              Param #\n"
        "======================================================================\n"
        "Net (Net)                      [1, 4]                    7\n"
        "+ Block (a)                    [[1, 4], [[2], [3]]]      --\n"
        "|    + Linear (fc)             [1, 4]                    20\n"
        "+ Block (a)                    [1, 4]                    (recursive)\n"
        "======================================================================\n"
        "Total params (M): 0.27\n"
        "======================================================================\n"
    )

    assert one(frame, "", "params_own")[2] == 7
    assert one(frame, "a.fc", "params")[1:3] == ("Linear", 20)
    assert one(frame, TOTAL, "params")[2:4] == (270e3, 5e3)
    assert any(note.startswith("1 rows are further calls") for note in frame.attrs["notes"])


# --- the small network: 13,824 MACs per image in the stem, 36,864 in the convolution of a block, 80 in the head

PER_IMAGE = 13_824 + 2 * 36_864 + 80


def test_ptflops_without_parameters():
    frame = read("ptflops_04_net")

    assert frame.attrs["tool"] == "ptflops"
    assert set(frame["quantity"]) == {"macs", "macs_share"}
    assert one(frame, "", "macs") == (2, "Net", 0, 0.05e9, "0.0 GMac")
    # biases of the stem, norms (2 an element), activations and pooling are MACs there
    total = PER_IMAGE + 512 + 2 * 1024 + 2 * 512 + 512
    assert one(frame, "stem", "macs_share")[2] == round((13_824 + 512) / total, 5)
    assert one(frame, "blocks.1.conv", "macs_share") == (14, "Conv2d", round(36_864 / total, 5), 5e-6, "40.188%")


def test_mmcv_is_not_taken_for_calflops():
    frame = read("mmcv_net")

    assert frame.attrs["tool"] == "mmcv"
    assert "what mmcv calls FLOPs are MACs" in frame.attrs["notes"]
    assert one(frame, TOTAL, "macs_forward") == (24, "", 0, 0.05e9, "0.0 GFLOPs")
    assert one(frame, TOTAL, "params") == (25, "", 1500, 50, "1.5 k")
    assert one(frame, "blocks.0", "macs_share")[2] == 0.41863
    assert one(frame, "head", "params_share") == (20, "Linear", 0.06008, 5e-6, "6.008%")


def test_the_summary_of_openmmlab_alone(read_text):
    rule = "=" * 30
    frame = read_text(f"{rule}\nInput shape: (3, 1280, 800)\nFlops: 0.208T\nParams: 37.736M\n{rule}\n")

    assert frame.attrs["tool"] == "mmcv"
    assert one(frame, TOTAL, "macs_forward")[2:] == (0.208e12, 0.0005e12, "0.208T")
    assert one(frame, TOTAL, "params")[2:] == (37.736e6, 500, "37.736M")
    # lines that anyone may print, of thop for one, are no report by themselves
    with pytest.raises(GpuprofError, match="not a report"):
        read_text("Flops: 0.208T\nParams: 37.736M\n")


def test_mmengine_prints_a_table_and_a_model_and_both_are_read():
    frame = read("mmengine_net")

    assert frame.attrs["tool"] == "fvcore"
    # norms 2 an element, pooling 1
    total = PER_IMAGE + 2 * 1024 + 512
    claims = frame[(frame["module"] == "") & (frame["quantity"] == "macs")]
    assert list(claims["value"]) == [total, 90_190]
    assert list(claims["precision"]) == [0.5, 5]
    assert list(frame[(frame["module"] == "blocks.0.bn") & (frame["quantity"] == "params")]["value"]) == [16, 16]


def test_a_table_and_a_model_that_differ_are_two_reports(refused):
    text = text_of("mmengine_net").replace("#flops: 36.86K", "#flops: 36.76K", 1)

    assert refused(text) == (
        ": two reports ('blocks.0.conv' has macs 36.864K in line 14 and 36.76K in line 38): put every report into a "
        "file of its own"
    )


def test_deepspeed_with_time_for_latency():
    frame = read("deepspeed_03_net")

    # what is not a multiplication is a MAC here: the bias, norms (2 an element), activations and pooling
    assert one(frame, "", "macs")[2] == round(2 * (PER_IMAGE + 512 + 2 * 1024 + 2 * 512 + 512), -1)
    line, cls, latency, precision, text = one(frame, "head", "latency")
    share = one(frame, "head", "latency_share")[4]
    assert f"{text}, {share} time, " in text_of("deepspeed_03_net").splitlines()[line - 1]
    assert (cls, latency, precision) == (
        "Linear", pytest.approx(float(text.removesuffix(" us")) * 1e-6, rel=1e-15), pytest.approx(5e-9)
    )  # fmt: skip


SUMMARY_OF_DEEPSPEED_03 = """\
-------------------------- DeepSpeed Flops Profiler --------------------------
Summary of forward pass:
Profile step:                   1
Number of parameters:           1.5 k
Number of multiply-accumulate operations (MACs):   183.46 K
Number of floating point operations ( = 2 * MACs):   366.91 K
Latency:                        42.99 ms
Floating point operations per second(FLOPS):   8.53 MFLOPS
"""


def test_the_summary_of_deepspeed_03(read_text):
    frame = read_text(SUMMARY_OF_DEEPSPEED_03)

    assert one(frame, TOTAL, "params")[2] == 1500
    assert one(frame, TOTAL, "macs_forward") == (5, "", 183_460, 5, "183.46 K")
    assert one(frame, TOTAL, "flops_forward")[2] == 366_910
    assert one(frame, TOTAL, "latency_forward")[2] == 0.04299


def test_figures_between_bars(read_text):
    in_cells = read_text("| fwd MACs per GPU | 4.91 GMACs |\n|---|---|\n| fwd flops per GPU | 9.83 G |\n")
    in_a_box = read_text("| fwd MACs per GPU: 4.91 GMACs |\n| fwd flops per GPU:   9.83 G |\n")

    for frame in (in_cells, in_a_box):
        assert one(frame, TOTAL, "macs_forward")[2] == 4.91e9
        assert one(frame, TOTAL, "flops_forward")[2] == 9.83e9


def test_torch_summary_has_no_row_for_the_model():
    frame = read("torch_summary_net")

    assert frame.attrs["tool"] == "torchinfo"
    assert one(frame, "1-1", "macs") == (4, "Conv2d", 13_824, 0.5, "13,824")
    assert one(frame, "1-2.2-2.3-4", "macs")[1:3] == ("Conv2d", 36_864)
    assert one(frame, "1-4", "params")[2] == 8 * 10 + 10
    assert one(frame, TOTAL, "params_trainable")[2] == 1498


def test_torch_summary_without_branches(read_text):
    lines = text_of("torch_summary_net").split("\n")
    width = lines[1].index("Output")
    plain = [line[:width].lstrip("├─└| ").ljust(width) + line[width:] if "─" in line else line for line in lines]
    frame = read_text("\n".join(plain))

    assert frame.drop(columns="line").to_dict("list") == read("torch_summary_net").drop(columns="line").to_dict("list")


def test_of_torchsummary_only_the_totals_are_read():
    frame = read("torchsummary_net")

    assert set(frame["module"]) == {TOTAL}
    assert one(frame, TOTAL, "params")[2:] == (1498, 0.5, "1,498")
    assert (
        "torchsummary's rows say in which order modules ran, not where they are: they are left out"
        in (frame.attrs["notes"])
    )


@pytest.mark.parametrize("name", ["lightning_net", "lightning_net_rich"])
def test_lightning(name):
    frame = read(name)

    assert frame.attrs["tool"] == "lightning"
    # 350,528 cut off, not rounded; 55,296 rounded
    assert one(frame, TOTAL, "flops_forward")[2:] == (350e3, 1e3, "350 K")
    assert one(frame, "net.stem", "flops")[1:] == ("Conv2d", 55.3e3, 50, "55.3 K")
    assert one(frame, "net.blocks.1.conv", "flops")[2:4] == (147e3, 1e3)
    assert one(frame, "net.blocks.1.conv", "params")[2:4] == (576, 0.5)
    assert one(frame, "net.blocks.0.bn", "flops")[1:4] == (
        "BatchNorm2d" if name == "lightning_net" else "", 0, 0.5
    )  # fmt: skip
    assert one(frame, TOTAL, "params_trainable")[2:4] == (1500, 50)
    assert len(frame[frame["quantity"] == "flops"]) == 13


def test_lightning_without_an_example_input_has_no_flops(read_text):
    frame = read_text(
        "  | Name | Type   | Params | Mode | FLOPs\n"
        "---------------------------------------\n"
        "0 | fc   | Linear | 1.5 K  | eval | 0    \n"
        "---------------------------------------\n"
        "1.5 K     Trainable params\n0         Non-trainable params\n1.5 K     Total params\n0         Total Flops\n"
    )

    assert set(frame["quantity"]) == {"params", "params_trainable", "params_frozen"}
    assert "FLOPs are left out: without an example input Lightning prints 0 for all of them" in frame.attrs["notes"]


def test_older_lightning_without_flops(read_text):
    frame = read_text(
        "  | Name | Type   | Params\n--------------------------\n0 | fc   | Linear | 90    \n------------------------\n"
        "90        Trainable params\n0         Non-trainable params\n90        Total params\n"
    )

    assert one(frame, "fc", "params") == (3, "Linear", 90, 0.5, "90")
    assert one(frame, TOTAL, "params")[2] == 90


def test_torchtnt():
    frame = read("torchtnt_net")

    assert frame.attrs["tool"] == "torchtnt"
    assert one(frame, "", "macs") == (3, "Net", 175e3, 1e3, "175 k")  # 2 x 87,632, cut off
    # to the stem goes no gradient of the input: its weight's alone
    assert one(frame, "stem", "macs_backward")[2:] == (27.6e3, 50, "27.6 k")
    assert one(frame, "head", "macs_backward")[2:] == (2 * 2 * 80, 0.5, "320")
    assert one(frame, "blocks.0.bn", "params_trainable")[2] == 16
    assert len(frame[frame["quantity"] == "macs"]) == 13


def test_thop():
    frame = read("thop_net")

    # norms have 4 operations an element, the average of pooling one each and one a result
    total = 2 * PER_IMAGE + 2 * 4 * 1024 + (1024 + 16)
    assert frame.attrs["tool"] == "thop"
    assert one(frame, TOTAL, "macs_forward") == (7, "", total, 0.05, "184496.0")
    assert one(frame, TOTAL, "params")[2] == 1498
    assert list(frame["module"].unique()) == [
        TOTAL, "stem", "blocks", "blocks.0", "blocks.0.conv", "blocks.0.bn", "blocks.0.act",
        "blocks.1", "blocks.1.conv", "blocks.1.bn", "blocks.1.act", "pool", "head",
    ]  # fmt: skip
    assert one(frame, "blocks.1.conv", "macs")[2:] == (2 * 36_864, 0.5, "73728.0")
    assert one(frame, "head", "params")[2] == 90


def test_thop_by_its_clever_format():
    frame = read("thop_net_clever")

    assert one(frame, TOTAL, "macs_forward") == (7, "", 184_496, 0.5, "184.496K")
    assert one(frame, TOTAL, "params") == (7, "", 1498, 0.5, "1.498K")


@pytest.mark.parametrize(
    ("line", "quantity", "value", "precision"),
    [
        ("('900.000B', '12.000B')", "macs_forward", 900, 0.0005),  # no billions
        ("(4111514624.0, 25557032.0)", "macs_forward", 4111514624, 0.05),
        ("FLOPs: 4.11G, Params: 25.56M", "flops_forward", 4.11e9, 5e6),
        ("GFLOPs = 4.11 | params: 25.56 M", "flops_forward", 4.11e9, 5e6),
        ("MACs(G): 4.11 Params(M): 25.56", "macs_forward", 4.11e9, 5e6),
        ("macs 4111514624.0 params 25557032.0", "macs_forward", 4111514624, 0.05),
        ("Flops: 4.11 GFLOPs", "flops_forward", 4.11e9, 5e6),
    ],
)
def test_what_people_print_of_thop(line, quantity, value, precision, read_text):
    frame = read_text("[INFO] Register count_linear() for <class 'torch.nn.modules.linear.Linear'>.\n" + line + "\n")

    assert one(frame, TOTAL, quantity)[2:4] == (value, precision)


def test_thop_without_a_log_of_its_rules(read_text):
    assert read_text("(4111514624.0, 25557032.0)\n").attrs["tool"] == "thop"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(5.0, 2.0, {'a': 3})\n", "line 1: expected {'module': (MACs, parameters, {...}), ...}, found \"{'a': 3}\""),
        ("(5.0, 2.0)\n(6.0, 2.0)\n", "line 2: a second report (the first has its macs_forward in line 1)"),
        ("[INFO] Register zero_ops() for <class 'X'>.\n", "looks like a report of thop but holds no figure"),
        ("[INFO] Register zero_ops() for <class 'X'>.\nGFLOPs: 3G\n", "line 2: expected one of G, G, found"),
    ],
)
def test_damaged_reports_of_thop(text, message, refused):
    assert message in refused(text)


# --- what surrounds a report, and how it was stored


def test_log_lines_around_a_report_and_a_plain_model_above_it(read_text):
    plain = "Net(\n  (fc): Linear(in_features=3, out_features=4, bias=True)\n)\n"

    frame = read_text("loading (1 of 2)\n" + plain + text_of("ptflops_gpt2") + "\ndone (really)\n")

    assert one(frame, "lm_head", "macs")[2] == 4.94e9


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-8-sig"),
        lambda text: f"\x1b[32m{text}\x1b[0m".encode(),
        lambda text: ("50%|##  | 1/2\r" + text).encode(),
        lambda text: "\n".join(line.strip() for line in text.split("\n")).encode(),
        lambda text: "\n".join("    " + line for line in text.split("\n")).encode(),
    ],
    ids=["crlf", "utf-16", "bom", "colours", "progress", "no indentation", "indented"],
)
def test_the_same_figures_however_the_text_was_stored(change, read_text):
    expected = read("calflops_gpt2")

    frame = read_text(change(text_of("calflops_gpt2")))

    assert frame.to_dict("list") == expected.to_dict("list")


# --- bad input


def test_missing_file_folder_empty_and_binary(tmp_path, refused):
    with pytest.raises(GpuprofError, match=r"cannot read report .*none\.txt: No such file"):
        read_report(tmp_path / "none.txt")
    with pytest.raises(GpuprofError, match=r"cannot read report .*: Is a directory"):
        read_report(tmp_path)
    with pytest.raises(GpuprofError, match="cannot read report"):
        read_report("nul\0.txt")
    assert refused(" \n\n").startswith("is empty")
    assert refused(b"\x80\x02}q\x00").startswith("is not text")
    assert refused(b"PK\x03\x04\x00\x00").startswith("is not text")
    assert refused(b"\xff\xfea").startswith("is not text")


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)

    with pytest.raises(GpuprofError, match=r"has 64\.00 MiB: too large"):
        read_report(path)


def test_unknown_kinds_are_told_what_is_known(refused):
    message = refused("Epoch 1: loss 2.3\n")

    assert message.startswith(
        ": not a report of calflops, DeepSpeed, ptflops, mmcv, fvcore or mmengine, FlopCounterMode, torchinfo or "
        "torch-summary, Lightning, torchtnt or thop"
    )
    assert "no line like 'Calculate Flops Results'" in message
    assert refused("Net(\n  (fc): Linear(in_features=3, out_features=4)\n)\n").startswith(": not a report")


def test_the_command_names_the_tools_that_are_read():
    described = get_type_hints(validate, include_extras=True)["report"].__metadata__[0].help

    assert described == f"A report of {TOOLS}; a log that it is in will do."
    named = set(TOOLS.lower().replace(",", "").split())
    assert {"flopcountermode" if kind.tool == "torch-counter" else kind.tool for kind in (*KINDS, *PLAIN)} <= named


def test_two_reports_in_one_file(refused):
    both = text_of("calflops_gpt2") + text_of("torchinfo_gpt2")

    assert "holds reports of calflops (line 2) and torchinfo (line " in refused(both)
    assert "a second report" in refused(text_of("calflops_gpt2") * 2)
    assert "line 35: a second report begins here" in refused(text_of("ptflops_gpt2") * 2)
    assert "a second report begins here" in refused(text_of("torch_counter_resnet50") * 2)


def test_a_report_cut_off_names_the_module(refused):
    lines = text_of(LLAVA).split("\n")
    layer = next(number for number, line in enumerate(lines, start=1) if "26 x" in line)

    assert refused("\n".join(lines[: layer + 1])) == (
        f": ends inside 'vision_tower.vision_model.encoder.layers.0-25' (line {layer}): the report is cut off"
    )
    assert refused("\n".join(lines[:24])).startswith(
        ": ends inside the model 'LlavaOnevisionForConditionalGeneration' (line 23)"
    )
    assert refused("\n".join(lines[:22])) == "line 15: the modules announced here do not follow: the report is cut off"
    assert refused("\n".join(lines[:11])) == (
        ": the summary has no line with macs_forward_backward: the report is cut off"
    )


@pytest.mark.parametrize("name", TREES)
def test_a_tree_cut_anywhere_is_refused(name, refused):
    text = text_of(name)
    end = text.rindex("\n)") + 1
    start = text.index("(\n") - 1
    for position in random.Random(0).sample(range(start, end), 60):
        cut = text[:position].rstrip()
        assert "ends inside" in refused(cut) or "cut off" in refused(cut) or "not a report" in refused(cut)


@pytest.mark.parametrize("name", ["torchinfo_gpt2", "torchinfo_resnet50"])
def test_torchinfo_cut_off(name, refused):
    lines = text_of(name).split("\n")
    last = max(number for number, line in enumerate(lines) if "─" in line)

    for end in range(2, last + 2):
        assert "ends inside the table of modules (line 2)" in refused("\n".join(lines[:end]))
    assert "no line 'Total params: N' follows" in refused("\n".join(lines[: last + 2]))


def test_tables_cut_off(refused):
    fvcore, torch = text_of("fvcore_resnet50_table"), text_of("torch_counter_resnet50")

    assert "expected 3 columns" in refused(fvcore[: fvcore.index("25.557M")])
    assert "no row of modules follows" in refused("\n".join(fvcore.split("\n")[:2]))
    assert "no row of modules follows" in refused("\n".join(torch.split("\n")[:2]))
    lightning = text_of("lightning_net")
    assert refused(lightning[: lightning.index("1.5 K     Trainable")]) == (
        "line 15: no line 'N Total params' follows the table: the report is cut off"
    )
    assert "no row of modules follows" in refused("\n".join(text_of("torchtnt_net").split("\n")[:2]))
    assert refused(torch[: torch.index("4.096M")]).startswith("line 5: expected 'module  FLOP  N%'")
    mmengine = text_of("mmengine_net")
    assert "no line '+---' ends the table" in refused(mmengine[: mmengine.index("|   blocks.1 ")])


@pytest.mark.parametrize(
    ("name", "after", "message"),
    [
        # what is left of 92,158,464, of 91,372,032 and of 786,432 would be numbers of their own
        ("torchinfo_gpt2", "Total params: 92,158", "line 37: the totals end here"),
        ("torchinfo_gpt2", "Trainable params: 91,372", "line 38: the totals end here"),
        ("torchinfo_gpt2", "Non-trainable params: 786", "line 39: the parameters, trainable and not, do not add up"),
        ("torchinfo_gpt2", "Total params: 92,", "no line 'Total params: N' follows"),
        ("torchsummary_net", "Total params: 1", "the totals end here"),
        ("torch_summary_net", "Trainable params: 1,4", "the totals end here"),
        ("lightning_net", "0         Non-trainable params\n", "no line 'N Total params' follows"),
        ("lightning_net_rich", "Non-trainable params: 0", "no line 'N Total params' follows"),
        ("deepspeed_gated", "Aggregated Profile per GPU", "the modules announced here do not follow"),
    ],
)
def test_cut_off_behind_the_modules_or_before_them(name, after, message, refused):
    text = text_of(name)

    assert message in refused(text[: text.index(after) + len(after)])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (LLAVA, "1.33 M = 0.0165% Params", "1.33 X = 0.0165% Params", "line 41: expected 'N = N% Params', found '1.33"),
        (LLAVA, "15.48 GMACs = 0.0291% MACs", "15.48 = 0.0291% MACs", "expected 'N MACs = N% MACs', found '15.48 = "),
        (LLAVA, ", 30.96 GFLOPS = 0.0277% FLOPs", "", "line 41: expected 'N FLOPS = N% FLOPs', found 'in_feat"),
        (LLAVA, "53.1858 TMACs", "nan", "line 10: expected a number for macs_forward, found 'nan'"),
        (LLAVA, "fwd FLOPs:  ", "fwd:  ", ": the summary has no line with flops_forward"),
        (LLAVA, "(0-25): 26 x", "(0-25): 27 x", "line 37: (0-25) are 26 layers, not 27"),
        (LLAVA, "(0-25): 26 x", "(a-b): 26 x", "line 37: expected '(first-last): 26 x', found '(a-b): 26 x"),
        (LLAVA, "(0-25): 26 x", "(0-9999999): 10000000 x", "line 37: folded layers make more than 200,000 modules"),
        (LLAVA, "(0-25): 26 x", "(0-199998): 199999 x", "folded layers make more than 200,000 modules"),
        (LLAVA, "out_features=1152, bias=True)", "out_features=1152, bias=True", "line 41: expected ')' at the end of"),
        ("calflops_gpt2", "\n        )\n        (ln_2)", "\n        (ln_2)", "does not close 'transformer.h.0-1.attn'"),
        ("deepspeed_bert", "128.03 ms = 35.08% latency", "128.03 = latency", "'N s = N% latency', found '128.03 = lat"),
        ("deepspeed_bert", "46.87 GFLOPS, in_", "46.87 G, in_", "expected 'N FLOPS', found '46.87 G, in_features"),
        ("ptflops_gpt2", "38.61 M, 72", "lots, 72", "line 3: expected 'N = N% Params', found 'lots, 72.077%"),
        ("fvcore_bert_str", "#params: 38.64M", "#params: many", "line 3: expected a number for params, found 'many'"),
        ("fvcore_resnet50_table", "25.557M", "25.557Q", "line 3: expected a number for params, found '25.557Q'"),
        ("torchinfo_gpt2", "(786,432)", "(lots)   ", "line 7: expected a number for params, found '(lots)'"),
        ("torchinfo_gpt2", "77,194,752  ", "            ", "line 6: expected a module and 6 columns (Input Shape"),
        ("torchinfo_gpt2", "│    └─Emb", "│    │    │    └─Emb", "expected a module"),
        ("torchinfo_gpt2", "(Units.GIGABYTES)", "(Q)", "line 40: expected a unit such as (M) or (GIGABYTES)"),
        ("torchinfo_gpt2", "Output Shape", "Output Form ", "expected a module and 5 columns"),
        ("ptflops_04_net", "0.0 GMac, 41.863%", "lots, 41.863%", "line 7: expected 'N Mac = N% MACs', found 'lots, 41"),
        ("mmcv_net", "0.0 GFLOPs, 15.629%", "15.629%", "line 3: expected 'N FLOPs = N% FLOPs', found '15.629% FLOPs"),
        ("torch_summary_net", "13,824", "      ", "line 4: expected a module and 3 columns (Output Shape, Param #"),
        ("lightning_net", "| 1.5 K  |", "| lots   |", "line 3: expected a number for params, found 'lots'"),
        ("lightning_net", "| 1.5 K  |", "", "line 3: expected 8 columns between bars, found '0  | net"),
        ("torchtnt_net", "| 27.6 k        | 27.6", "| 27.6 k        / 27.6", "line 4: expected 11 columns between"),
    ],
)  # fmt: skip
def test_damage_is_refused_with_line_and_expectation(name, old, new, message, refused):
    text = text_of(name)
    assert old in text
    assert message in refused(text.replace(old, new, 1))


def test_figures_without_the_model_above_them(refused):
    lines = text_of("calflops_gpt2").split("\n")

    assert refused("\n".join(lines[23:30])) == "line 1: figures, but the line with the name of the model is not above"


@pytest.mark.parametrize("name", TREES + TABLES)
def test_any_damage_is_an_error_of_ours_or_readable(name, read_text):
    lines = text_of(name).split("\n")
    chance = random.Random(1)
    for _ in range(40):
        damaged = list(lines)
        for _ in range(3):
            place = chance.randrange(len(damaged))
            cut = chance.randrange(len(damaged[place]) + 1)
            damaged[place] = chance.choice(["", damaged[place][:cut], damaged[place][cut:], ")", "(x): Y("])
        try:
            frame = read_text("\n".join(damaged) or "x")
        except GpuprofError:
            continue
        assert len(frame)
