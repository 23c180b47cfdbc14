"""Models of many families by name: a folder with a small `config.json`, and inputs that are the model's own.

How large an image is and how many positions of the text it takes are derived by hand from the configuration.
"""

import json
from pathlib import Path

import pytest
from releases import architecture_may_lack
from transformers import AutoConfig

from gpuprof import count, profile
from gpuprof.errors import GpuprofError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
QUESTION = 64

# Detection and sound have no layers that `shrink` knows.
SMALLER = {
    "grounding-dino": {
        "backbone_config": {"model_type": "swin", "embed_dim": 24, "depths": [1, 1, 1, 1], "out_indices": [2, 3, 4]},
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_queries": 20,
    },
}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_architectures

    return bench_architectures


@pytest.fixture
def folder(bench, tmp_path):
    """Writes an architecture, shrunken, as a folder; gives its path."""

    def write(model_type, architecture, divisor=4, **fields):
        fields = bench.FIELDS.get(model_type, {}) | SMALLER.get(model_type, {}) | fields
        with architecture_may_lack():
            config = AutoConfig.for_model(model_type, **fields).to_dict()
        small = bench.shrink(config, divisor, 2000) if model_type not in SMALLER else config
        small.pop("dtype", None)
        (tmp_path / "config.json").write_text(
            json.dumps(small | {"architectures": [architecture], "model_type": model_type})
        )
        with architecture_may_lack():
            AutoConfig.from_pretrained(tmp_path)
        return str(tmp_path)

    return write


def inputs(run):
    return {tensor["name"]: tensor["shape"] for tensor in run.workload["inputs"]}


def flops(run):
    return run.ops["flops_full"].fillna(0).sum()


FAMILIES = [
    # 896 / 14 = 64 patches a side, pooled to 256 in all
    ("gemma3", "Gemma3ForConditionalGeneration", 4, {"pixel_values": [1, 3, 896, 896]}, 256 + QUESTION),
    # 448 / 14 = 32 patches a side, each of two images of 3 x 14 x 14; four of them are a position, and two tokens
    # stand around
    (
        "qwen2_vl", "Qwen2VLForConditionalGeneration", 1,
        {"pixel_values": [32 * 32, 2 * 3 * 14 * 14], "image_grid_thw": [1, 3]}, 1 + 32 * 32 // 4 + 1 + QUESTION,
    ),
    (
        "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", 1,
        {"pixel_values": [32 * 32, 2 * 3 * 14 * 14], "image_grid_thw": [1, 3]}, 1 + 32 * 32 // 4 + 1 + QUESTION,
    ),
    # 224 / 16 = 14 patches a side
    ("deepseek_vl", "DeepseekVLForConditionalGeneration", 4, {"pixel_values": [1, 3, 224, 224]}, 14 * 14 + QUESTION),
    # 980 / 14 = 70 patches a side, 4900, for which the projector has 256 queries
    ("aria", "AriaForConditionalGeneration", 4, {"pixel_values": [1, 3, 980, 980]}, 256 + QUESTION),
    ("instructblip", "InstructBlipForConditionalGeneration", 4,
     {"pixel_values": [1, 3, 224, 224], "qformer_input_ids": [1, 64]}, 32 + QUESTION),
    # an image beside the text takes no position in it
    ("bridgetower", "BridgeTowerModel", 4, {"pixel_values": [1, 3, 288, 288]}, QUESTION),
    ("grounding-dino", "GroundingDinoForObjectDetection", 4, {"pixel_values": [1, 3, 800, 800]}, QUESTION),
    ("sam", "SamModel", 1, {"pixel_values": [8, 3, 1024, 1024]}, None),
    # 16 x 16 patches of 3 x 16 x 16
    ("siglip2", "Siglip2ForImageClassification", 4, {"pixel_values": [8, 256, 768], "spatial_shapes": [8, 2]}, None),
    ("timesfm", "TimesFmModelForPrediction", 4, {"past_values": [8, 512]}, None),
    # 5 s at 16 kHz are 156.25 hops of 512
    ("dac", "DacModel", 4, {"input_values": [1, 1, 157 * 512]}, None),
    ("mimi", "MimiModel", 1, {"input_values": [1, 1, 5 * 24_000]}, None),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "architecture", "divisor", "seen", "text"), FAMILIES)
def test_its_own_inputs(folder, model_type, architecture, divisor, seen, text):
    place = folder(model_type, architecture, divisor)
    for mode in ("forward", "train"):
        with architecture_may_lack():
            run = count(place, mode=mode)

        given = inputs(run)
        assert {name: given[name] for name in seen} == seen
        assert given.get("input_ids") == (text and [1, text])
        assert (run.ops["phase"] == "backward").any() == (mode == "train")


@pytest.mark.parametrize("model_type", ["instructblip", "siglip2", "timesfm"])
def test_the_same_is_counted_of_a_real_run(folder, model_type):
    """Whose images and places in the text have to fit, or it raises."""
    architecture, divisor = next(family[1:3] for family in FAMILIES if family[0] == model_type)
    place = folder(model_type, architecture, divisor)
    with architecture_may_lack():
        real = profile(place, mode="forward", batch_size=1, device="cpu", passes=("count",))

    assert flops(count(place, mode="forward", batch_size=1)) == flops(real)


@pytest.mark.parametrize(
    ("model_type", "architecture"), [("rwkv", "RwkvForCausalLM"), ("falcon_mamba", "FalconMambaForCausalLM")]
)
def test_models_with_a_state_generate(folder, model_type, architecture):
    place = folder(model_type, architecture, hidden_size=64, vocab_size=256)
    options = {"mode": "generate", "prompt_len": 6, "new_tokens": 3}

    run = count(place, **options)

    assert inputs(run)["input_ids"] == [1, 6]
    head = run.ops[run.ops["module"].isin(["head", "lm_head"]) & run.ops["flops_full"].gt(0)]
    assert head["calls"].sum() == 3  # the prefill and two more tokens
    assert flops(run) == flops(profile(place, device="cpu", passes=("count",), **options))


def test_a_model_without_a_forward_is_refused(folder):
    with pytest.raises(GpuprofError, match=r"^BarkModel has no forward, only parts that have: name one of them"):
        count(folder("bark", "BarkModel"), mode="forward")


def test_an_image_that_no_token_stands_for_is_refused(folder):
    place = folder("gemma3", "Gemma3ForConditionalGeneration", image_token_index=None)
    with pytest.raises(GpuprofError, match=r"config\.json gives no image_token_i"):
        count(place, mode="forward")


def test_layers_that_differ_leave_facts_unknown(folder):
    """Gemma 4 has heads of another size in some layers, and raises when asked for one size."""
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    sizes = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_global_key_value_heads": 1}
    place = folder(
        "gemma4_text",
        "Gemma4ForCausalLM",
        1,
        hidden_size=128,
        per_layer_config={1: {"head_dim": 128}},
        **layers,
        **sizes,
    )
    run = count(place, mode="forward", seq_len=8)

    assert run.workload["facts"] is None
    queries = run.ops[run.ops["module"].str.endswith("q_proj")]
    # 8 tokens, 128 wide, to 2 heads of 64 in the first layer and of 128 in the second
    assert sorted(queries.groupby("module")["flops_full"].sum()) == [2 * 8 * 128 * 128, 2 * 8 * 128 * 256]
