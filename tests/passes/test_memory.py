"""The memory pass on nets whose tensors can be added up by hand, and on an allocator that the test drives."""

import pytest
import torch

import gpuprof
from gpuprof.passes import memory
from gpuprof.passes.kept import Held, total_bytes
from gpuprof.passes.memory import Reading
from gpuprof.passes.simulated import simulate
from gpuprof.workload import Options, build, from_module

BATCH, WIDE, HIDDEN, OUT = 8, 16, 32, 4
WEIGHTS = 4 * (WIDE * HIDDEN + HIDDEN + HIDDEN * OUT + OUT)


def net():
    return torch.nn.Sequential(torch.nn.Linear(WIDE, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, OUT))


def workload(model=None, optimizer=None, **options):
    model = model or net()
    chosen = {} if optimizer is None else {"optimizer": optimizer(model.parameters())}
    return from_module(model, (torch.ones(BATCH, WIDE),), **chosen, **options)


def measured(work):
    return memory.measure(work, lambda: torch.manual_seed(0))


def analytic(rows):
    rows = rows.loc[rows["source"] == "analytic", ["quantity", "module", "bytes"]]
    return {(name, module): size for name, module, size in rows.itertuples(index=False)}


def test_sizes_by_hand():
    rows, _, outcome = measured(workload(optimizer=torch.optim.AdamW))

    steps = 4 * 4  # AdamW counts the steps of each parameter in a float32
    assert analytic(rows) == {
        ("parameters", ""): WEIGHTS,
        ("buffers", ""): 0,
        ("gradients", ""): WEIGHTS,
        ("optimizer_state", ""): 2 * WEIGHTS + steps,
        ("optimizer_state_before", ""): 0,
        ("activations", "0"): 4 * BATCH * WIDE,  # its input
        ("activations", "1"): 4 * BATCH * HIDDEN,  # its output, which the next layer keeps too
    }
    assert outcome.status == "done"


def test_state_of_an_earlier_step_is_known():
    work = workload(optimizer=torch.optim.SGD)
    work.optimizer.param_groups[0]["momentum"] = 0.9
    work.step()

    found = analytic(measured(work)[0])

    assert found["optimizer_state_before", ""] == found["optimizer_state", ""] == WEIGHTS


def test_the_timeline_follows_the_step():
    _, line, _ = measured(workload(optimizer=torch.optim.SGD))

    assert line[["phase", "module", "event"]].to_numpy().tolist() == [
        ["forward", "", "begin"],
        ["forward", "", "enter"],
        ["forward", "0", "enter"], ["forward", "0", "exit"],
        ["forward", "1", "enter"], ["forward", "1", "exit"],
        ["forward", "2", "enter"], ["forward", "2", "exit"],
        ["forward", "", "exit"],
        ["forward", "", "end"],
        ["backward", "", "begin"],
        *[["backward", module, "gradient"] for module in ("2", "2", "0", "0")],
        ["backward", "", "end"],
        ["other", "", "begin"], ["other", "", "end"],
        ["optimizer", "", "begin"], ["optimizer", "", "end"],
        ["other", "", "begin"], ["other", "", "end"],
    ]  # fmt: skip
    assert line["time_s"].is_monotonic_increasing
    kept = dict(zip(line["module"] + line["event"], line["kept_bytes"], strict=True))
    assert kept["0exit"] == 4 * BATCH * WIDE
    assert kept["1exit"] == kept["2exit"] == 4 * BATCH * (WIDE + HIDDEN)
    gradients = line.loc[line["event"] == "gradient", "gradient_bytes"].tolist()
    assert gradients[-1] == WEIGHTS
    assert gradients == sorted(gradients)
    assert line["kept_bytes"].iloc[-1] == 4 * BATCH * WIDE  # the input is its owner's, and stays
    assert (line["bytes"] > 0).all()
    assert line["reserved_bytes"].isna().all()


def test_recomputed_modules_are_in_the_timeline_and_in_no_account_twice():
    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=True)

    rows, line, _ = measured(from_module(Checkpointed(), (torch.ones(BATCH, WIDE, requires_grad=True),)))

    again = line[line["phase"] == "recompute"]
    assert again["module"].tolist() == [
        "", "net", "net.0", "net.0", "net.1", "net.1", "net.2", "net.2", "net", "",
    ]  # fmt: skip
    assert again["kept_bytes"].max() == 4 * BATCH * (WIDE + HIDDEN)
    assert sum(size for (name, _), size in analytic(rows).items() if name == "activations") == 4 * BATCH * WIDE


def test_sparse_gradients_are_counted():
    model = torch.nn.Embedding(10, 4, sparse=True)

    rows, _, outcome = memory.measure(from_module(model, (torch.tensor([1, 2, 3]),)), lambda: None)

    assert outcome.status == "done"
    assert analytic(rows)["gradients", ""] == 3 * 8 + 3 * 4 * 4  # indices and values


def test_nothing_is_left_behind():
    model = net()

    measured(workload(model))

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


class Counter:
    """An allocator that the test drives: bytes now and, since the last reset, at most."""

    def __init__(self):
        self.now = self.most = 0

    def move(self, *levels):
        for self.now in levels:
            self.most = max(self.most, self.now)

    def read(self):
        return Reading(self.now, self.most, self.now + 5, self.most + 5)

    def reset(self):
        self.most = self.now
        return True


def test_nested_peaks():
    counter = Counter()
    meter = memory._Meter(counter.read, counter.reset, Held(), Held())
    counter.move(10)
    meter.enter_phase("forward")
    with meter.module(0):
        counter.move(30, 20)
        with meter.module(1):
            counter.move(90, 25)
        counter.move(40, 35)
    meter.enter_phase("backward")
    counter.move(70, 15)
    meter.gradient("x")
    counter.move(60)
    meter.enter_phase("")

    def rows(found):
        return {(row["module"] or row["phase"], row["quantity"]): row["bytes"] for row in found}

    assert rows(meter.phase_rows("allocated")) == {
        ("forward", "allocated_entry"): 10, ("forward", "allocated_exit"): 35, ("forward", "allocated_peak"): 90,
        ("forward", "reserved_peak"): 95,
        ("backward", "allocated_entry"): 35, ("backward", "allocated_exit"): 60, ("backward", "allocated_peak"): 70,
        ("backward", "reserved_peak"): 75,
    }  # fmt: skip
    assert rows(meter.module_rows("ab".__getitem__)) == {
        ("a", "peak_above_entry"): 80, ("a", "retained"): 25, ("b", "peak_above_entry"): 70, ("b", "retained"): 5,
    }  # fmt: skip
    line = meter.timeline("ab".__getitem__)
    assert [(row["module"], row["event"], row["bytes"], row["peak_bytes"]) for row in line] == [
        ("", "begin", 10, 10), ("a", "enter", 10, 10), ("b", "enter", 20, 30), ("b", "exit", 25, 90),
        ("a", "exit", 35, 40), ("", "end", 35, 35),
        ("", "begin", 35, 35), ("x", "gradient", 15, 70), ("", "end", 60, 60),
    ]  # fmt: skip
    assert {row["reserved_bytes"] - row["bytes"] for row in line} == {5}


def test_a_system_that_resets_no_peak_has_none_in_the_timeline():
    counter = Counter()
    meter = memory._Meter(counter.read, lambda: False, Held(), Held())
    meter.enter_phase("forward")
    counter.move(50, 10)
    meter.enter_phase("")

    assert [row["peak_bytes"] for row in meter.timeline("".__getitem__)] == [None, None]
    assert {row["quantity"] for row in meter.phase_rows("rss")} == {"rss_entry", "rss_exit"}


def test_held_tensors_are_counted_once_and_as_long_as_something_holds_them():
    held, tensor = Held(), torch.ones(6)
    view = tensor[2:]

    assert (held.add(tensor), held.add(view), held.bytes) == (24, 0, 24)
    del tensor
    assert held.bytes == 24
    del view
    assert held.bytes == 0
    assert total_bytes([a := torch.ones(3), a, a[1:]]) == 12


def test_a_simulated_step_holds_what_can_be_added_up(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\ndef net():\n"
        f"    net = torch.nn.Sequential(torch.nn.Linear({WIDE}, {HIDDEN}), torch.nn.ReLU(), "
        f"torch.nn.Linear({HIDDEN}, {OUT}))\n"
        f"    return net, torch.ones({BATCH}, {WIDE})\n"
    )
    reference = f"{tmp_path / 'own.py'}:net"

    step = simulate(build(reference, Options(device="cpu"), weightless=True), {})

    hidden, out = 4 * BATCH * HIDDEN, 4 * BATCH * OUT
    forward = [size for size, phase in zip(step.live, step.phases, strict=True) if phase == "forward"]
    # the product before the activation goes when that is there; then the output, its mean, and the gradient of that
    levels = [0, hidden, 2 * hidden, hidden + out, hidden + out + 4, hidden + out + 8]
    assert list(dict.fromkeys(forward)) == levels
    assert step.live[-1] == WEIGHTS + out + 4  # gradients, output and loss
    assert step.kept == {"0": 4 * BATCH * WIDE, "1": hidden}


@pytest.mark.parametrize(
    "op",
    [
        "aten::_scaled_dot_product_flash_attention.default",
        "aten::_scaled_dot_product_efficient_attention.default",
        "aten::_scaled_dot_product_cudnn_attention.default",
    ],
)
def test_fused_attention_of_a_gpu_is_simulated_as_the_operator_that_ran_there(tmp_path, op):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Attend(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.proj = torch.nn.Linear(8, 8)\n"
        "    def forward(self, x):\n"
        "        x = self.proj(x)\n"
        "        return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)\n"
        "def net():\n"
        "    return Attend(), torch.ones(2, 4, 64, 8)\n"
    )
    reference = f"{tmp_path / 'own.py'}:net"

    def kept(attention):
        return sum(simulate(build(reference, Options(device="cpu"), weightless=True), attention).kept.values())

    scores = 4 * 2 * 4 * 64 * 64
    assert kept({"": op}) < scores < kept({})


def test_a_profile_keeps_the_account_and_the_timeline(tmp_path):
    run = gpuprof.profile(net(), torch.ones(BATCH, WIDE), passes=("memory",))

    loaded = gpuprof.load(run.save(tmp_path / "run.json"))

    assert analytic(loaded.memory)["activations", "1"] == 4 * BATCH * HIDDEN
    assert loaded.timeline["event"].tolist().count("gradient") == 4
    assert loaded.timeline.equals(run.timeline)
