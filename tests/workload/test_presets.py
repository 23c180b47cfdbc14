import json

import pytest
import torch

from gpuprof.errors import GpuprofError
from gpuprof.workload import Options, build, load_preset, preset_names

PUBLISHED = {
    "bert-base": 109_514_298,
    "gpt2": 124_439_808,
    "llama-3.1-8b": 8_030_261_248,
    "llava-onevision-qwen2-7b": 8_030_807_584,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2-0.5b": 494_032_768,
    "qwen2-7b": 7_615_616_512,
    "resnet-50": 25_557_032,
    "siglip-so400m-384": 428_225_600,
    "smollm2-135m": 134_515_008,
    "t5-small": 60_506_624,
    "vit-base-16": 86_567_656,
    "whisper-small": 241_734_912,
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_presets_are_the_published_ones():
    assert preset_names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters(name):
    workload = build(name, Options(mode="forward"), weightless=True)

    assert count(workload.model) == load_preset(name)["parameters"] == PUBLISHED[name]
    assert workload.device == torch.device("meta")
    assert {parameter.device.type for parameter in workload.model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in workload.model.parameters()} == {torch.bfloat16}
    for tensor in workload.description["inputs"]:
        assert tensor["dtype"] in ("bfloat16", "int64")
    json.dumps(workload.description)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_preset_says_what_it_is(name):
    preset = load_preset(name)

    assert {"description", "source", "architecture", "config", "parameters"} <= set(preset)
    assert "model_type" in preset["config"]


def test_llava_onevision_is_made_of_the_parts_of_the_reference():
    model = build("llava-onevision-qwen2-7b", Options(), weightless=True).model

    assert count(model.model.vision_tower) == 397_747_744
    assert count(model.model.multi_modal_projector) == 16_980_992
    assert count(model.model.language_model) == 7_070_848_512
    assert count(model.lm_head) == 545_226_752


def test_the_reference_workload():
    options = Options(mode="generate", image_crops=16, prompt_len=7405, new_tokens=7)
    workload = build("llava-onevision-qwen2-7b", options, weightless=True)
    shapes = {tensor["name"]: tensor["shape"] for tensor in workload.description["inputs"]}

    assert shapes == {"input_ids": [1, 7405], "pixel_values": [1, 16, 3, 384, 384], "image_sizes": [1, 2]}
    assert workload.description["tokens_per_step"] == 7411


def test_defaults_of_a_preset_yield_to_the_user():
    assert build("gpt2", Options(), weightless=True).description["seq_len"] == 1024
    assert build("gpt2", Options(seq_len=7), weightless=True).description["seq_len"] == 7


def test_an_unknown_preset_is_refused():
    with pytest.raises(GpuprofError, match="no preset 'nope'; the presets are: bert-base, gpt2"):
        load_preset("nope")
