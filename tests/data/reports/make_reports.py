"""Make the reports of this folder by running each counter on models built from the presets (random weights, CPU).

    python tests/data/reports/make_reports.py [name ...]

in an environment with torch, transformers and the counters: calflops, deepspeed, ptflops, fvcore, torchinfo. Rewrites
NAME.txt beside this file and VERSIONS.txt. DeepSpeed measures time, so its latencies differ on every run.
`calflops_llava_onevision_qwen2_7b.txt` is no product of this script: it is a report from a user's own run.
"""

import contextlib
import io
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
PRESETS = HERE.parents[2] / "gpuprof/workload/presets"
BATCH, SEQ_LEN = 2, 64


def build(preset: str, **changes):
    """A model of the preset with changed configuration values, and its inputs."""
    torch.manual_seed(0)
    facts = json.loads((PRESETS / f"{preset}.json").read_text())
    config = transformers.AutoConfig.for_model(**(facts["config"] | changes))
    model = getattr(transformers, facts["architecture"])(config).eval()
    if preset == "resnet-50":
        return model, {"pixel_values": torch.randn(1, 3, 224, 224)}
    return model, {"input_ids": torch.randint(0, config.vocab_size, (BATCH, SEQ_LEN))}


def gpt2():
    """GPT-2 with two of its twelve layers, so that its report stays short."""
    return build("gpt2", n_layer=2, use_cache=False)


def bert():
    """BERT base with two of its twelve layers."""
    return build("bert-base", num_hidden_layers=2)


def calflops_gpt2() -> None:
    from calflops import calculate_flops

    model, inputs = gpt2()
    calculate_flops(model, kwargs=inputs, output_precision=4)


def calflops_bert_summary() -> None:
    from calflops import calculate_flops

    model, inputs = bert()
    calculate_flops(model, kwargs=inputs, print_detailed=False, compute_bp_factor=2.5)


def deepspeed_bert() -> None:
    from deepspeed.profiling.flops_profiler import get_model_profile

    model, inputs = bert()
    get_model_profile(model, kwargs=inputs, warm_up=2)


def ptflops_resnet50() -> None:
    from ptflops import get_model_complexity_info

    model, _ = build("resnet-50")
    macs, params = get_model_complexity_info(model, (3, 224, 224), verbose=True, ost=sys.stdout)
    print(f"Computational complexity: {macs}")
    print(f"Number of parameters: {params}")


def ptflops_gpt2() -> None:
    from ptflops import get_model_complexity_info

    model, inputs = gpt2()
    get_model_complexity_info(model, (SEQ_LEN,), input_constructor=lambda _: inputs, ost=sys.stdout)


def fvcore_resnet50_table() -> None:
    from fvcore.nn import FlopCountAnalysis, flop_count_table

    model, inputs = build("resnet-50")
    print(flop_count_table(FlopCountAnalysis(model, inputs["pixel_values"]), max_depth=5))


def fvcore_bert_str() -> None:
    from fvcore.nn import FlopCountAnalysis, flop_count_str

    model, inputs = bert()
    print(flop_count_str(FlopCountAnalysis(model, inputs["input_ids"])))


def torch_counter_resnet50() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = build("resnet-50")
    with FlopCounterMode(depth=None):
        model(**inputs)


def torch_counter_gpt2_training() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = gpt2()
    with FlopCounterMode(depth=5):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()


def torchinfo_gpt2() -> None:
    from torchinfo import summary

    model, inputs = gpt2()
    columns = ("input_size", "output_size", "num_params", "params_percent", "mult_adds", "trainable")
    model.transformer.wpe.requires_grad_(False)
    print(summary(model, input_data=inputs, depth=9, col_names=columns, row_settings=("depth", "var_names"), verbose=0))


def torchinfo_resnet50() -> None:
    from torchinfo import summary

    model, inputs = build("resnet-50")
    print(summary(model, input_data=inputs["pixel_values"], depth=3, verbose=0))


REPORTS = [
    calflops_gpt2, calflops_bert_summary, deepspeed_bert, ptflops_resnet50, ptflops_gpt2, fvcore_resnet50_table,
    fvcore_bert_str, torch_counter_resnet50, torch_counter_gpt2_training, torchinfo_gpt2, torchinfo_resnet50,
]  # fmt: skip

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for report in REPORTS:
        if not sys.argv[1:] or report.__name__ in sys.argv[1:]:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                report()
            (HERE / f"{report.__name__}.txt").write_text(printed.getvalue())
    tools = ("torch", "transformers", "calflops", "deepspeed", "ptflops", "fvcore", "torchinfo")
    (HERE / "VERSIONS.txt").write_text("".join(f"{tool} {version(tool)}\n" for tool in tools))
