"""What one NVIDIA H200 recorded, read again: figures that its counters gave are derived here by hand."""

import csv
import gzip
import json
import statistics
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import gpuprof
from gpuprof.analysis import telemetry
from gpuprof.analysis.executed import executed, executed_whole
from gpuprof.hardware import counters, ncu
from gpuprof.passes.operators import is_composite_name
from gpuprof.run import Run
from gpuprof.schema import UNATTRIBUTED, table
from gpuprof.traces.events import KERNEL, Event, Events, apart, host_kind
from gpuprof.traces.owners import attribute

DATA = Path(__file__).parent / "data" / "nvidia-h200"


def product(tile, tiles, depth):
    """FLOPs of so many tiles, each multiplied over the depth."""
    return 2 * tile[0] * tile[1] * tiles[0] * tiles[1] * depth


# Shapes of products, with rows of the table and FLOPs of each.
# Tiles of cuBLAS lie along torch's columns, then along its rows. 8 images of 27 x 27 = 729 patches are 5832 rows, 1152
# wide, in the MLP 4304; as depths in steps of 64 they are 92 x 64 = 5888, 18 x 64 = 1152 and 68 x 64 = 4352.
SIGLIP = {
    # convolution of the patches: 46 x 128 = 5888 positions, 9 x 128 channels; 14 x 14 taps of 3 channels as 32
    "8x3x384x384 1152x3x14x14 1152 -> 8x1152x27x27": (1, product((128, 128), (46, 9), 196 * 32)),
    # its weight's gradient: 5 x 256 channels, 14 x 14 taps of 3 channels as 8 make 24.5 x 64, 5832 positions 183 x 32
    "8x1152x27x27 8x3x384x384 1152x3x14x14 -> 1152x3x14x14 1152": (1, product((256, 64), (5, 25), 183 * 32)),
    # projections of the attention: 192 x 144, 6 by 40.5
    "1152 5832x1152 1152x1152 -> 5832x1152": (8, product((192, 144), (6, 41), 1152)),
    "5832x1152 1152x1152 -> 5832x1152": (8, product((192, 144), (6, 41), 1152)),
    # 96 x 128, 12 by 9; clusters of 4 x 2 make that 10
    "1152x5832 5832x1152 -> 1152x1152": (8, product((96, 128), (12, 10), 5888)),
    # the MLP: 256 x 128, 16.8 by 45.6, pairs along the second: 46
    "4304 5832x1152 1152x4304 -> 5832x4304": (2, product((256, 128), (17, 46), 1152)),
    "1152 5832x4304 4304x1152 -> 5832x1152": (2, product((192, 144), (6, 41), 4352)),
    "5832x4304 4304x1152 -> 5832x1152": (2, product((192, 144), (6, 41), 4352)),
    # 160 x 256, 26.9 by 22.8: 27 in pairs are 28
    "5832x1152 1152x4304 -> 5832x4304": (2, product((160, 256), (28, 23), 1152)),
    # 320 x 128, 13.45 by 9: 14 in pairs
    "1152x5832 5832x4304 -> 1152x4304": (2, product((320, 128), (14, 9), 5888)),
    # 128 x 160, 9 by 26.9: 27 in pairs are 28
    "4304x5832 5832x1152 -> 4304x1152": (2, product((128, 160), (9, 28), 5888)),
    # the pooling head: keys and values of all patches, 256 x 136, 9 by 42.9: 43 in pairs are 44
    "5832x1152 1152x2304 -> 5832x2304": (1, product((256, 136), (9, 44), 1152)),
    # one query for each of 8 images, two launches of 16 x 64, 72 (18 clusters of 4) by 1
    "1152 8x1152 1152x1152 -> 8x1152": (1, 2 * product((16, 64), (72, 1), 1152)),
    # 64 x 8, 67.25 by 1: 17 clusters of 4
    "4304 8x1152 1152x4304 -> 8x4304": (1, product((64, 8), (68, 1), 1152)),
    # 64 x 8, 18 by 1: 5 clusters of 4 make 20; 60 blocks are 3 slices, 68 steps of 64 in three are 23 each
    "1152 8x4304 4304x1152 -> 8x1152": (1, product((64, 8), (20, 1), 3 * 23 * 64)),
    # attention: 8 x 16 heads of 72 as 128, 729 queries and keys as 6 x 128; two products, in the backward five
    "8x16x729x72 8x16x729x72 8x16x729x72 -> 8x16x729x72 8x16x729x1 scalar scalar": (2, 2 * 2 * 128 * 768**2 * 128),
    "8x16x729x72 8x16x729x72 8x16x729x72 8x16x729x72 8x16x729x72 8x16x729x1 scalar scalar"
    " -> 8x16x729x72 8x16x729x72 8x16x729x72": (2, 5 * 2 * 128 * 768**2 * 128),
}

# 2048 tokens, 3584 wide = 14 x 256 = 28 x 128 = 16 x 224, keys and values 512; MLP of 18944 = 74 x 256; 152064 words.
# Blocks of 128 x 128 at or below the diagonal: 1 + 2 + ... + 16 = 136.
BELOW = 136 * 128 * 128
QWEN2 = {
    "3584 2048x3584 3584x3584 -> 2048x3584": (2, 2 * 2048 * 3584 * 3584),
    "2048x3584 3584x3584 -> 2048x3584": (6, 2 * 2048 * 3584 * 3584),
    "3584x2048 2048x3584 -> 3584x3584": (4, 2 * 2048 * 3584 * 3584),
    "512 2048x3584 3584x512 -> 2048x512": (4, 2 * 2048 * 512 * 3584),
    "2048x512 512x3584 -> 2048x3584": (4, 2 * 2048 * 512 * 3584),
    "512x2048 2048x3584 -> 512x3584": (4, 2 * 2048 * 512 * 3584),
    "2048x3584 3584x18944 -> 2048x18944": (6, 2 * 2048 * 3584 * 18944),
    "2048x18944 18944x3584 -> 2048x3584": (6, 2 * 2048 * 3584 * 18944),
    "18944x2048 2048x3584 -> 18944x3584": (4, 2 * 2048 * 3584 * 18944),
    # 320 x 128: 59.2 by 28, pairs along the second
    "3584x2048 2048x18944 -> 3584x18944": (2, product((320, 128), (60, 28), 2048)),
    # the head: 320 x 128, 475.2 by 16; 192 x 192, 18.7 by 792; 256 x 128, 14 by 16
    "2048x3584 3584x152064 -> 2048x152064": (1, product((320, 128), (476, 16), 3584)),
    "152064x2048 2048x3584 -> 152064x3584": (1, product((192, 192), (19, 792), 2048)),
    "2048x152064 152064x3584 -> 2048x3584": (1, 2 * 2048 * 3584 * 152064),
    "1x28x2048x128 1x4x2048x128 1x4x2048x128 -> 1x28x2048x128 1x28x2048x1 scalar scalar": (2, 2 * 2 * 28 * BELOW * 128),
    "1x28x2048x128 1x28x2048x128 1x4x2048x128 1x4x2048x128 1x28x2048x128 1x28x2048x1 scalar scalar"
    " -> 1x28x2048x128 1x4x2048x128 1x4x2048x128": (2, 5 * 2 * 28 * BELOW * 128),
}

# Products outside tensor cores, where `minimal` counts no FLOPs in bfloat16, nor in float32 of a step in bfloat16:
# the pooling head's single query of 8 x 16 heads, and the angles of the rotary embedding.
NOT_COLLECTED = {
    "siglip": ["128x1x72 128x72x729 -> 128x1x729", "128x1x729 128x729x72 -> 128x1x72"],
    "qwen2": ["1x64x1 1x1x2048 -> 1x64x2048"],
}


@pytest.mark.parametrize(("name", "by_hand"), [("siglip", SIGLIP), ("qwen2", QWEN2)])
def test_every_product_executes_the_tiles_that_are_derived_by_hand(name, by_hand):
    run = gpuprof.load(DATA / f"counters-{name}.json.gz")
    found = executed(run)
    products = found[found["flops_hardware"].fillna(0) > 0]
    unseen = products["flops_executed"].isna()

    assert products.loc[unseen, "shapes"].tolist() == NOT_COLLECTED[name]
    assert set(products.loc[unseen, "cause"]) == {"outside tensor cores, not collected"}
    seen = products[~unseen]
    assert Counter(seen["shapes"]) == {shapes: rows for shapes, (rows, _) in by_hand.items()}
    assert seen["flops_executed"].tolist() == [by_hand[shapes][1] for shapes in seen["shapes"]]
    assert seen["flops_expected"].tolist() == seen["flops_executed"].tolist()
    assert "unexplained" not in set(found["cause"])
    assert executed_whole(run)["flops_executed"] == sum(rows * flops for rows, flops in by_hand.values())


@pytest.mark.parametrize(
    ("shapes", "cause"),
    [
        ("1152 5832x1152 1152x1152 -> 5832x1152", "tile padding"),
        ("1152x5832 5832x1152 -> 1152x1152", "tile padding, cluster padding"),
        ("1152 8x4304 4304x1152 -> 8x1152", "split-K padding, cluster padding"),
        ("8x3x384x384 1152x3x14x14 1152 -> 8x1152x27x27", "every filter tap padded, tile padding"),
        ("8x1152x27x27 8x3x384x384 1152x3x14x14 -> 1152x3x14x14 1152", "channel padding, tile padding"),
    ],
)
def test_causes_are_named(shapes, cause):
    found = executed(gpuprof.load(DATA / "counters-siglip.json.gz"))

    assert set(found.loc[found["shapes"] == shapes, "cause"]) == {cause}


def test_the_raw_table_of_nsight_compute():
    text = gzip.decompress((DATA / "counters-siglip-ncu-1.csv.gz").read_bytes()).decode()
    columns = counters.columns_of(["sm__ops_path_tensor_src_bf16_dst_fp32", "dram__bytes_read", "gpu__time_duration"])

    launches = ncu.read_csv(text, [metric for metrics in columns.values() for metric in metrics])

    assert len(launches) == 4 + 135  # the calibration's, and as many as the run has
    assert {launch.metrics[ncu.REPLAYS] for launch in launches} == {1}
    calibration, step = launches[:4], launches[4:]
    assert all("gpuprof|op|" in launch.ranges for launch in step)
    for launch, size in zip(calibration, ("4096x4096", "4000x4000", "1x4096", "1x4096"), strict=True):
        assert f"gpuprof|calibration|bfloat16|{size}x{size.rpartition('x')[2]}:" in launch.ranges
    square, padded, row, added = (counters.values(launch.metrics, columns) for launch in calibration)
    assert square["tensor_bfloat16"] == 2 * 4096**3 == 137_438_953_472
    assert padded["tensor_bfloat16"] == product((160, 192), (25, 21), 63 * 64)
    # one row as eight, in 128 blocks: two slices, which the last launch adds up
    assert (calibration[2].grid, row["tensor_bfloat16"]) == ("2x64x1", product((64, 8), (64, 1), 4096))
    assert added["tensor_bfloat16"] == 0
    # a matrix of 4096 x 4096 in bfloat16 is 2^25 bytes: the row reads one, the square product two at least
    assert square["dram_read_bytes"] >= 2**26
    assert 2**25 <= row["dram_read_bytes"] < 1.01 * 2**25
    assert all(launch.metrics["gpu__time_duration.sum"] > 0 for launch in launches)


def event_of(fields):
    """An event as it was recorded when events only said whether they were the GPU's."""
    kind = KERNEL if fields.pop("on_device") else host_kind(fields["name"])
    return Event(kind=kind, **fields)


def test_kineto_s_events_of_a_training_step():
    recorded = json.loads(gzip.decompress((DATA / "kineto-llama-train-step.json.gz").read_bytes()))
    makers = {(thread, number): module for thread, number, module in recorded["makers"]}

    events = Events.of(event_of(dict(zip(recorded["fields"], event, strict=True))) for event in recorded["events"])

    kernels, torch_s, facts, _ = attribute(
        *apart(events),
        [(module, again) for module, again in recorded["calls"]],
        lambda thread, number: makers.get((thread, number)),
        is_composite_name,
    )

    assert kernels[["kernel", "module", "phase", "op"]].to_dict("list") == recorded["expected"]
    assert facts == {"events": 1076, "kernels": 173, "kernels_linked": 173}
    # each of the eight linear layers multiplies once in the forward, and for its input and its weight in the backward
    block = "model.layers.0."
    linear = [f"{block}self_attn.{name}_proj" for name in "qkvo"]
    linear += [f"{block}mlp.{name}_proj" for name in ("gate", "up", "down")] + ["lm_head"]
    products = kernels[kernels["op"] == "aten::mm"].drop_duplicates("call")
    assert Counter(zip(products["module"], products["phase"], strict=True)) == {
        (module, phase): times for module in linear for phase, times in (("forward", 1), ("backward", 2))
    }
    attention = kernels[kernels["op"].str.contains("attention")].drop_duplicates("call")
    assert attention[["module", "phase"]].values.tolist() == [
        [f"{block}self_attn", "forward"],
        [f"{block}self_attn", "backward"],
    ]
    # of no module are the gradient of the loss, which backward() itself makes, and the optimizer
    outside = kernels[kernels["module"] == UNATTRIBUTED]
    assert outside[["op", "phase"]].values.tolist() == [
        ["aten::ones_like", "forward"],
        ["aten::_foreach_add_", "optimizer"],
    ]
    # torch's own estimates: 16 tokens, 64 wide and 128 in the MLP, 64 words; and 16 angles at 16 places
    forward = 2 * 16 * (4 * 64 * 64 + 3 * 64 * 128 + 64 * 64)
    torch_s = torch_s[torch_s["op"].isin(["aten::mm", "aten::bmm"])].groupby(["phase", "op"])["flops_profiler"].sum()
    assert torch_s.to_dict() == {
        ("forward", "aten::mm"): forward,
        ("forward", "aten::bmm"): 2 * 16 * 16,
        ("backward", "aten::mm"): 2 * forward,
    }


def test_telemetry_of_two_busy_seconds():
    with (DATA / "telemetry.csv").open() as file:
        lines = list(csv.DictReader(file))
    run = Run(
        workload={}, device={"max_sm_clock_mhz": 1980.0, "power_limit_w": 700.0}, environment={},
        telemetry=table("telemetry", pd.read_csv(DATA / "telemetry.csv").to_dict("records")),
    )  # fmt: skip

    found = telemetry.summary(run)

    def values(quantity):
        return [float(line["value"]) for line in lines if line["quantity"] == quantity]

    assert found["window_s"] == pytest.approx(2.013155, abs=1e-6)
    assert found["sm_clock_mhz"] == pytest.approx(1515)
    assert found["sm_clock_ratio"] == pytest.approx(1515 / 1980)
    assert found["power_w"] == statistics.median(values("power_instant")) == pytest.approx((702.705 + 723.292) / 2)
    assert (found["power_max_w"], found["power_limit_w"]) == (824.296, 700.0)
    assert found["temperature_max_c"] == max(values("temperature"))
    assert found["energy_j"] == pytest.approx(26606.14 - 25254.277)
    assert found["limits"] == ["power cap for 1.769 s of 2.013 s"]
    assert telemetry.invalid_reasons(run.telemetry) == []


def test_telemetry_of_two_busy_seconds_by_phases_of_a_generation():
    parts = [("prefill", 0.15, 0.85), *(("decode", 1.0 + number / 10, 0.1) for number in range(9))]
    rows = [{"step": 0, "part": part, "phase": phase, "samples": 1, "positions": 1, "start_s": at, "time_s": time_s}
            for part, (phase, at, time_s) in enumerate(parts)]  # fmt: skip
    run = Run(
        workload={}, device={}, environment={}, generation=table("generation", rows),
        telemetry=table("telemetry", pd.read_csv(DATA / "telemetry.csv").to_dict("records")),
    )  # fmt: skip

    found = telemetry.of_phases(run).to_dict("records")

    # read at 0.31 to 0.91 s: 1515 1530 1530 1500 1515 1545 1530 MHz, and at 1.11 to 1.81
    assert found == [
        {"phase": "prefill", "readings": 7, "sm_clock_mhz": 1530.0, "power_w": 740.557},
        {"phase": "decode", "readings": 8, "sm_clock_mhz": 1500.0, "power_w": pytest.approx((687.42 + 691.769) / 2)},
    ]
