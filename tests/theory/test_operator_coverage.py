"""Every operator that common models, layers and optimizers run has a rule."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from releases import implementation_may_lack
from torch import nn
from torch.nn import functional as F

from gpuprof.theory import cost_of, least_bytes

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_TEXT = {**SMALL, "vocab_size": 64}
VISION = {**SMALL, "image_size": 16, "patch_size": 8}
IDS = torch.arange(16).reshape(2, 8)
TEXT = {"input_ids": IDS, "labels": IDS}
PADDED = {**TEXT, "attention_mask": torch.tensor([[0] * 3 + [1] * 5, [1] * 8])}
IMAGE = {"pixel_values": torch.ones(2, 3, 16, 16)}
LABELED = {**IMAGE, "labels": torch.tensor([0, 1])}


def t5(**options):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, decoder_start_token_id=0, **options))


def whisper(**options):
    sizes = {"d_model": 16, "vocab_size": 64, "num_mel_bins": 8}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 32}
    lengths = {"max_source_positions": 8, "max_target_positions": 16}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**sizes, **lengths, **tokens, **options))


def gpt2(**options):
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64, n_positions=32, **options))


MODELS = {
    "llama": (
        lambda **o: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL_TEXT, num_key_value_heads=1, **o)),
        TEXT,
    ),
    "gpt2": (gpt2, TEXT),
    "bert": (
        lambda **o: hf.BertForMaskedLM(hf.BertConfig(**SMALL_TEXT, max_position_embeddings=32, **o)),
        PADDED,
    ),
    "t5": (t5, TEXT),
    "siglip": (lambda **o: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION, **o)), IMAGE),
    "vit": (lambda **o: hf.ViTForImageClassification(hf.ViTConfig(**VISION, **o)), LABELED),
    "whisper": (whisper, {"input_features": torch.ones(2, 8, 16), "labels": IDS}),
    "mixtral": (
        lambda **o: hf.MixtralForCausalLM(
            hf.MixtralConfig(**SMALL_TEXT, num_key_value_heads=1, num_local_experts=4, output_router_logits=True, **o)
        ),
        TEXT,
    ),
    "qwen2": (
        lambda **o: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SMALL_TEXT, num_key_value_heads=1, **o)),
        PADDED,
    ),
}

OPTIMIZERS = {
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adamw single": lambda p: torch.optim.AdamW(p, foreach=False),
    "amsgrad": lambda p: torch.optim.AdamW(p, foreach=True, amsgrad=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, momentum=0.9, fused=True),
    "sgd single": lambda p: torch.optim.SGD(p, momentum=0.9, foreach=False),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adafactor": lambda p: torch.optim.Adafactor(p),
}

LAYERS = {
    "lstm": (nn.LSTM(4, 8, 2, bidirectional=True, batch_first=True, dropout=0.1), (2, 5, 4)),
    "lstm with projection": (nn.LSTM(4, 8, 2, bidirectional=True, proj_size=3), (5, 2, 4)),
    "gru": (nn.GRU(4, 8, 2, bidirectional=True), (5, 2, 4)),
    "rnn": (nn.RNN(4, 8), (5, 2, 4)),
    "lstm cell": (nn.LSTMCell(4, 8), (2, 4)),
    "transposed convolution": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
    "norms and pools": (
        nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.GroupNorm(2, 6), nn.GELU(), nn.AvgPool2d(2),
            nn.InstanceNorm2d(6), nn.Hardswish(), nn.LeakyReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(2),
        ),
        (2, 4, 8, 8),
    ),
    "norms and activations": (
        nn.Sequential(
            nn.RMSNorm(6), nn.LayerNorm(6), nn.Softplus(), nn.ELU(), nn.Mish(), nn.SiLU(), nn.Sigmoid(),
            nn.Tanh(), nn.PReLU(), nn.LogSoftmax(-1), nn.ReLU6(), nn.Hardtanh(), nn.Softmax(-1),
            nn.LogSigmoid(), nn.GLU(),
        ),
        (4, 6),
    ),
    "encoder layer": (nn.TransformerEncoderLayer(16, 2, 32), (5, 2, 16)),
    "conv1d": (nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.MaxPool1d(2), nn.BatchNorm1d(6)), (2, 4, 8)),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 3), nn.AvgPool3d(2), nn.MaxPool3d(2)), (1, 2, 10, 10, 10)),
}  # fmt: skip


def without_rule(calls) -> set[str]:
    missing = set()
    for call in calls:
        found = cost_of(*call)
        if found is None:
            missing.add(call.op)
        else:
            assert least_bytes(*found, *call[1:]) >= 0
    return missing


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, attention, record):
    build, inputs = MODELS[name]
    with implementation_may_lack():
        model = build(attn_implementation=attention).train()
    with record() as calls:
        out = model(**inputs)
        loss = out.loss if "labels" in inputs else out.pooler_output.sum()
        loss.backward()
    assert without_rule(calls) == set()
    assert sum(call.cost.full for call in calls) > 0


def test_mixtral_in_every_way_to_run_its_experts(record):
    figures = set()
    for experts in ("eager", "batched_mm", "grouped_mm"):
        torch.manual_seed(0)
        config = hf.MixtralConfig(**SMALL_TEXT, num_key_value_heads=1, num_local_experts=4)
        model = hf.MixtralForCausalLM(config)
        model.set_experts_implementation(experts)
        with record() as calls:
            model(**TEXT).loss.backward()
        assert without_rule(calls) == set()
        figures.add(sum(call.cost.full for call in calls))
    assert len(figures) == 1


def test_resnet(record):
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = hf.ResNetForImageClassification(config).train()
    with record() as calls:
        model(**LABELED).loss.backward()
    assert without_rule(calls) == set()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, record):
    model = nn.Linear(4, 4)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(2):
        with record() as calls:
            model(torch.randn(2, 4)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        assert without_rule(calls) == set()


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, record):
    layer, shape = LAYERS[name]
    with record() as calls:
        out = layer(torch.randn(shape, requires_grad=True))
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert without_rule(calls) == set()


def test_packed_sequences(record):
    x = torch.randn(2, 5, 4, requires_grad=True)
    with record() as calls:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
        out, _ = nn.GRU(4, 8)(packed)
        nn.utils.rnn.pad_packed_sequence(out)[0].sum().backward()
    assert without_rule(calls) == set()


def test_losses(record):
    x = torch.randn(4, 5, requires_grad=True)
    y = torch.rand(4, 5)
    classes = torch.tensor([0, 1, 2, 3])
    with record() as calls:
        losses = [
            F.mse_loss(x, y),
            F.l1_loss(x, y),
            F.smooth_l1_loss(x, y),
            F.huber_loss(x, y),
            F.binary_cross_entropy(x.sigmoid(), y),
            F.binary_cross_entropy_with_logits(x, y),
            F.kl_div(x, y, reduction="batchmean"),
            F.cross_entropy(x, y),
            F.cross_entropy(x, classes, label_smoothing=0.1),
            F.cosine_similarity(x, y).sum(),
        ]
        torch.stack(losses).sum().backward()
    assert without_rule(calls) == set()


def test_models_in_inference_mode(record):
    build, inputs = MODELS["llama"]
    with torch.inference_mode(), record() as calls:
        build(attn_implementation="sdpa").eval()(input_ids=inputs["input_ids"])
    assert without_rule(calls) == set()
