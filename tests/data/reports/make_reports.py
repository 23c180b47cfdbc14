"""Make the reports of this folder by running each counter on models built from the presets, or small (CPU).

    python tests/data/reports/make_reports.py [name ...]

in an environment with torch, transformers and the counters of `TOOLS`. Rewrites NAME.txt beside this file, and
VERSIONS.txt if all are made. DeepSpeed and torchtnt measure time, so their latencies differ on every run.
`calflops_llava_onevision_qwen2_7b.txt` is no product of this script: it is a report from a user's own run.

Reports of older releases are made by name only, each in an environment with the release that `OLDER` has. Of two of
them today's torch imports no more than the file of the counter: it is taken from where `COUNTER` says.
"""

import contextlib
import io
import json
import os
import sys
import types
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


class Block(torch.nn.Module):
    """A convolution of 8 channels on 8 x 8 positions, a norm and an activation."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(8)
        self.act = torch.nn.ReLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)) + x)


class Net(torch.nn.Module):
    """Two blocks between a convolution that halves 16 x 16 pixels and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = torch.nn.Sequential(Block(), Block())
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


IMAGE = (3, 16, 16)


def net(batch: int = 2):
    """The small network and a batch of images; tools that take the shape of one image have a batch of 1."""
    torch.manual_seed(0)
    return Net().eval(), {"x": torch.randn(batch, *IMAGE)}


class Gated(torch.nn.Module):
    """Causal attention and a SiLU-gated MLP, each behind a norm, as in a Llama."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)
        self.qkv, self.out = torch.nn.Linear(32, 96, bias=False), torch.nn.Linear(32, 32, bias=False)
        self.gate, self.up = torch.nn.Linear(32, 512, bias=False), torch.nn.Linear(32, 512, bias=False)
        self.act = torch.nn.SiLU()
        self.down = torch.nn.Linear(512, 32, bias=False)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norm_2(x)
        return x + self.down(self.act(self.gate(y)) * self.up(y))


def gated():
    torch.manual_seed(0)
    return Gated().eval(), {"x": torch.randn(2, 24, 32)}


def deepspeed_gated() -> None:
    from deepspeed.profiling.flops_profiler import get_model_profile

    model, inputs = gated()
    get_model_profile(model, kwargs=inputs)


def mmengine_net() -> None:
    from mmengine.analysis import get_model_complexity_info

    model, _ = net()
    found = get_model_complexity_info(model, IMAGE)
    print(found["out_table"])
    print(found["out_arch"])


def thop_net() -> None:
    import thop

    model, inputs = net()
    print(thop.profile(model, inputs=tuple(inputs.values()), ret_layer_info=True))


def thop_net_clever() -> None:
    import thop

    model, inputs = net()
    macs, params = thop.clever_format(thop.profile(model, inputs=tuple(inputs.values())), "%.3f")
    print(macs, params)


def _lightning_summary():
    from pytorch_lightning import LightningModule
    from pytorch_lightning.utilities.model_summary import ModelSummary

    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.net, inputs = net()
            self.example_input_array = inputs["x"]

        def forward(self, x):
            return self.net(x)

    return ModelSummary(Classifier(), max_depth=-1)


def lightning_net() -> None:
    print(_lightning_summary())


def lightning_net_rich() -> None:
    from pytorch_lightning.callbacks import RichModelSummary

    found = _lightning_summary()
    RichModelSummary.summarize(
        found._get_summary_data(), found.total_parameters, found.trainable_parameters, found.model_size,
        found.total_training_modes, found.total_flops,
    )  # fmt: skip


def torchtnt_net() -> None:
    from torchtnt.utils.module_summary import get_module_summary, get_summary_table

    model, inputs = net()
    print(get_summary_table(get_module_summary(model, module_args=tuple(inputs.values()))))


def ptflops_04_net() -> None:
    from ptflops import get_model_complexity_info

    get_model_complexity_info(net()[0], IMAGE)


def torch_summary_net() -> None:
    from torchsummary import summary

    summary(net()[0], IMAGE, col_names=("output_size", "num_params", "mult_adds"), depth=3, device="cpu")


def torchsummary_net() -> None:
    from torchsummary import summary

    summary(net()[0], IMAGE, device="cpu")


def deepspeed_03_net() -> None:
    for name in ("deepspeed", "deepspeed.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["deepspeed.utils"].logger = None
    # two starred expressions in brackets that Python refuses today
    profiler = _counter({"(*input_res),": "tuple(input_res),", "((*input_res))": "(tuple(input_res))"})
    profiler.get_model_profile(net()[0], (2, *IMAGE))


def mmcv_net() -> None:
    # of mmcv it needs the classes of layers alone, which are torch's here
    sys.modules["mmcv"] = types.SimpleNamespace(cnn=types.SimpleNamespace(bricks=torch.nn))
    flops, params = _counter({}).get_model_complexity_info(net()[0], IMAGE)
    print(f"{'=' * 30}\nInput shape: {IMAGE}\nFlops: {flops}\nParams: {params}\n{'=' * 30}")


def _counter(changes: dict[str, str]):
    """The module in the file of a counter, with changes in its text."""
    source = Path(os.environ["COUNTER"]).read_text()
    for old, new in changes.items():
        source = source.replace(old, new)
    module = types.ModuleType("counter")
    exec(compile(source, os.environ["COUNTER"], "exec"), module.__dict__)
    return module


TOOLS = (
    "torch", "transformers", "calflops", "deepspeed", "ptflops", "fvcore", "torchinfo", "mmengine", "thop",
    "pytorch-lightning", "torchtnt",
)  # fmt: skip

OLDER = {
    ptflops_04_net: "ptflops 0.4",
    torch_summary_net: "torch-summary 1.4.5",
    torchsummary_net: "torchsummary 1.5.1",
    deepspeed_03_net: "deepspeed 0.3.11 (COUNTER: deepspeed/profiling/flops_profiler/profiler.py)",
    mmcv_net: "mmcv 1.7.2 (COUNTER: mmcv/cnn/utils/flops_counter.py)",
}

REPORTS = [
    calflops_gpt2, calflops_bert_summary, deepspeed_bert, deepspeed_gated, ptflops_resnet50, ptflops_gpt2,
    fvcore_resnet50_table, fvcore_bert_str, torch_counter_resnet50, torch_counter_gpt2_training, torchinfo_gpt2,
    torchinfo_resnet50, mmengine_net, thop_net, thop_net_clever, lightning_net, lightning_net_rich, torchtnt_net,
]  # fmt: skip

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    names = sys.argv[1:]
    for report in [*REPORTS, *OLDER]:
        if report.__name__ in names or (not names and report in REPORTS):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                report()
            (HERE / f"{report.__name__}.txt").write_text(printed.getvalue())
    if not names:
        versions = [f"{tool} {version(tool)}" for tool in TOOLS]
        older = [f"{report.__name__}: {release}" for report, release in OLDER.items()]
        (HERE / "VERSIONS.txt").write_text("".join(f"{line}\n" for line in versions + older))
