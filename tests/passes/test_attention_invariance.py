"""Eager, fused and flex attention count the same mathematics; what the hardware does differs, and is told apart."""

import copy

import pytest
import torch
from releases import implementation_may_lack
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

import gpuprof
from gpuprof.workload.steps import cache_argument, returned_cache

BATCH, LENGTH, HEADS, HEAD = 2, 12, 4, 8
WIDTH = HEADS * HEAD
TRIANGLE = LENGTH * (LENGTH + 1) // 2
SIZES = {
    "vocab_size": 40, "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": HEADS, "num_key_value_heads": 2,
}  # fmt: skip
IMPLEMENTATIONS = ["eager", "sdpa", "flex_attention"]


def products(pairs, heads=BATCH * HEADS, head=HEAD):
    """Forward FLOPs of scores and weighted values over so many pairs per head."""
    return 2 * 2 * heads * pairs * head


def attention(run):
    """Per phase the FLOPs of attention products, and what the tree says of causality, of every attention module.

    Products of activations among each other: `bmm` and fused operators; projections are `mm` here.
    """
    attends = run.ops["op"].str.contains("bmm|attention") & (run.ops["flops_full"] > 0)
    attends &= ~run.ops["module"].str.contains("rotary")
    rows = run.ops[attends].groupby(["module", "phase"])[["flops_causal", "flops_full", "flops_hardware"]].sum()
    causality = run.tree.set_index("module")["causality"]
    return {key: tuple(map(int, row)) for key, row in rows.iterrows()}, causality[causality != ""].to_dict()


def measure(model, given=None, **kwargs):
    torch.manual_seed(0)
    return attention(gpuprof.profile(model, given, passes=["count"], **kwargs))


def decoder(kind, how, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation=how).train()


def text(padded=False, length=LENGTH):
    ids = torch.randint(1, 40, (BATCH, length))
    given = {"input_ids": ids, "labels": ids, "use_cache": False}
    if padded:
        given["attention_mask"] = torch.ones_like(ids)
        given["attention_mask"][1, : length // 3] = 0
    return given


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_a_llama(how, padded):
    found, causality = measure(decoder("llama", how), text(padded))
    module = "model.layers.0.self_attn"
    causal, full = products(TRIANGLE), products(LENGTH**2)
    if how == "flex_attention" and padded:  # its mask has values: a third of the second sequence is nobody's key
        kept = LENGTH - LENGTH // 3
        causal = products(TRIANGLE + kept * (kept + 1) // 2, heads=HEADS)
    # a mask tensor makes the fused kernel work on the whole square; the blocks of a block mask are longer than this
    done = causal if how == "sdpa" and not padded else full
    assert found == {
        (module, "forward"): (causal, full, done),
        (module, "backward"): (2 * causal, 2 * full, (2 if how == "eager" else 2.5) * done),
    }
    assert causality == {module: "known"}


WINDOW = 5
BAND = sum(min(query + 1, WINDOW) for query in range(LENGTH))


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("kind", "changes", "bands"),
    [
        ("mistral", {"sliding_window": WINDOW}, [BAND]),
        ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1,
                   "num_hidden_layers": 2}, [TRIANGLE, BAND]),
        ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": False}, [TRIANGLE]),
        ("gemma2", {"sliding_window": WINDOW, "num_hidden_layers": 2, "head_dim": HEAD}, [BAND, TRIANGLE]),
    ],
    ids=["mistral", "qwen2", "qwen2-off", "gemma2"],
)  # fmt: skip
def test_a_sliding_window(kind, changes, bands, how):
    if (kind, how) == ("gemma2", "sdpa"):
        pytest.skip("the library has no such combination")
    found, causality = measure(decoder(kind, how, **changes), text())
    full = products(LENGTH**2)
    for layer, pairs in enumerate(bands):
        module = f"model.layers.{layer}.self_attn"
        assert found[module, "forward"][:2] == (products(pairs), full)
        assert found[module, "backward"][:2] == (2 * products(pairs), 2 * full)
        assert causality[module] == "known"


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize("new", [1, 3])
def test_new_queries_over_a_cache(how, new):
    model = decoder("llama", how).eval()
    ids = text()["input_ids"]
    with torch.no_grad():
        # flex attention outside a pass would be compiled for real
        output = decoder("llama", "eager")(input_ids=ids, use_cache=True)
    filled = {cache_argument(model): returned_cache(model, output)}

    def step():
        with torch.no_grad():
            model(input_ids=ids[:, :new], use_cache=True, **copy.deepcopy(filled))

    found, causality = measure(model, step=step, mode="generate")
    # the last query sees all keys, the one before it one less, and so on
    keys = LENGTH + new
    pairs = sum(keys - back for back in range(new))
    ((causal, full, _),) = found.values()
    assert (causal, full) == (products(pairs), products(new * keys))
    assert causality == {"model.layers.0.self_attn": "known"}


class Plain(nn.Module):
    """Attention without a word about itself."""

    def __init__(self, attend):
        super().__init__()
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.attend = attend

    def forward(self, x):
        q, k, v = self.mix(x).view(*x.shape[:2], 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        return self.attend(q, k, v).transpose(1, 2).reshape(x.shape)


def sdpa(**kwargs):
    return lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, **kwargs)


def by_hand(q, k, v):
    blocked = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return (q @ k.transpose(-1, -2)).masked_fill(blocked, -torch.inf).softmax(-1) @ v


def hidden(length=LENGTH):
    return torch.randn(BATCH, length, WIDTH)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("is_causal", [True, False])
def test_scaled_dot_product_attention_says_what_it_masks(backend, is_causal):
    with sdpa_kernel(backend):
        found, causality = measure(Plain(sdpa(is_causal=is_causal)), hidden())
    full = products(LENGTH**2)
    causal = products(TRIANGLE) if is_causal else full
    fused = backend != SDPBackend.MATH
    done = causal if fused else full
    assert found == {
        ("", "forward"): (causal, full, done),
        ("", "backward"): (2 * causal, 2 * full, (2.5 if fused else 2) * done),
    }
    assert causality == {"": "known"}


def test_causality_that_cannot_be_known_counts_full_and_says_so():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            mask = torch.zeros(LENGTH, LENGTH)
            self.masked = Plain(sdpa(attn_mask=mask))
            self.causal = Plain(sdpa(is_causal=True))
            self.named = NamedAttention(by_hand)

        def forward(self, x):
            return self.named(self.causal(self.masked(x)))

    class NamedAttention(Plain):
        head_dim = HEAD

    found, causality = measure(Model(), hidden())
    assert causality == {"masked": "unknown", "causal": "known", "named": "unknown"}
    for module in ("masked", "named"):
        assert found[module, "forward"][:2] == (products(LENGTH**2),) * 2
        assert found[module, "backward"][:2] == (2 * products(LENGTH**2),) * 2


def test_a_module_says_that_it_is_causal():
    model = Plain(by_hand)
    model.is_causal, model.head_dim = True, HEAD
    found, causality = measure(model, hidden())
    assert found["", "backward"] == (2 * products(TRIANGLE), 2 * products(LENGTH**2), 2 * products(LENGTH**2))
    assert causality == {"": "known"}


@pytest.mark.parametrize("compiled", [False, True])
def test_flex_attention_of_a_users_own(compiled):
    block_mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, LENGTH, LENGTH, device="cpu")
    attend = torch.compile(flex_attention) if compiled else flex_attention
    model = Plain(lambda q, k, v: attend(q, k, v, block_mask=block_mask))
    model.is_causal, model.head_dim = True, HEAD
    original = torch.nn.attention.flex_attention.flex_attention_hop
    found, causality = measure(model, hidden())
    causal, full = products(TRIANGLE), products(LENGTH**2)
    assert found == {
        ("", "forward"): (causal, full, full),  # one block of 128 x 128, and of that what there is
        ("", "backward"): (2 * causal, 2 * full, 2.5 * full),
    }
    assert causality == {"": "known"}
    assert torch.nn.attention.flex_attention.flex_attention_hop is original


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "hint", "tensor"])
def test_multi_head_attention(weights, mask):
    causal_mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x):
            given = {"none": {}, "hint": {"attn_mask": causal_mask, "is_causal": True}}
            return self.inner(x, x, x, need_weights=weights, **given.get(mask, {"attn_mask": causal_mask}))[0]

    found, causality = measure(Model(), hidden())
    full = products(LENGTH**2)
    causal = products(TRIANGLE) if mask == "hint" else full
    assert found["inner", "forward"][:2] == (causal, full)
    assert found["inner", "backward"][:2] == (2 * causal, 2 * full)
    assert causality == {"inner": "unknown" if mask == "tensor" else "known"}


# -- architectures that are not plain decoders


def gpt2(how):
    config = AutoConfig.for_model("gpt2", n_embd=WIDTH, n_head=HEADS, n_layer=1, n_positions=16, vocab_size=40,
                                  bos_token_id=1, eos_token_id=1, attn_pdrop=0.0)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=how).train()
    return model, text(), {"transformer.h.0.attn": (TRIANGLE, LENGTH**2)}


def bert(how):
    config = AutoConfig.for_model("bert", **SIZES, max_position_embeddings=16, attention_probs_dropout_prob=0.0)
    model = AutoModel.from_config(config, attn_implementation=how).train()
    given = {"input_ids": text()["input_ids"]}
    path = "encoder.layer.0.attention.self"
    return model, given, {path: (LENGTH**2,) * 2}


def vit(how):
    config = AutoConfig.for_model("vit", **SIZES, image_size=8, patch_size=4, attention_probs_dropout_prob=0.0)
    model = AutoModel.from_config(config, attn_implementation=how).train()
    tokens = (8 // 4) ** 2 + 1
    # the innermost: in some releases a module of only the output's projection is around it
    *_, path = [name for name, module in model.named_modules() if "Attention" in type(module).__name__]
    return model, {"pixel_values": torch.randn(BATCH, 3, 8, 8)}, {path: (tokens**2,) * 2}


ENCODED = 10


def t5(how):
    config = AutoConfig.for_model("t5", d_model=WIDTH, d_kv=HEAD, d_ff=16, num_layers=1, num_heads=HEADS,
                                  vocab_size=40, dropout_rate=0.0, decoder_start_token_id=0)  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation=how).train()
    given = {"input_ids": torch.randint(1, 40, (BATCH, ENCODED)), "labels": torch.randint(1, 40, (BATCH, LENGTH))}
    return (
        model,
        given,
        {
            "encoder.block.0.layer.0.SelfAttention": (ENCODED**2,) * 2,
            "decoder.block.0.layer.0.SelfAttention": (TRIANGLE, LENGTH**2),
            "decoder.block.0.layer.1.EncDecAttention": (LENGTH * ENCODED,) * 2,
        },
    )


def whisper(how):
    config = AutoConfig.for_model(
        "whisper", d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=ENCODED,
        max_target_positions=16, vocab_size=40, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, num_mel_bins=4,
    )  # fmt: skip
    model = AutoModelForSpeechSeq2Seq.from_config(config, attn_implementation=how).train()
    given = {"input_features": torch.randn(BATCH, 4, 2 * ENCODED), "labels": torch.randint(1, 40, (BATCH, LENGTH))}
    return (
        model,
        given,
        {
            "model.encoder.layers.0.self_attn": (ENCODED**2,) * 2,
            "model.decoder.layers.0.self_attn": (TRIANGLE, LENGTH**2),
            "model.decoder.layers.0.encoder_attn": (LENGTH * ENCODED,) * 2,
        },
    )


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize("make", [gpt2, bert, vit, t5, whisper])
def test_other_architectures(make, how):
    torch.manual_seed(0)
    with implementation_may_lack():
        made = make(how)
    attends(*made)


def test_t5_that_does_not_say_whether_it_is_causal():
    """As in releases of the library that have one kind of module for encoder, decoder and between them."""
    model, given, pairs = t5("eager")
    for module in model.modules():
        vars(module).pop("is_causal", None)
    attends(model, given, pairs)


def attends(model, given, pairs):
    """The model's attention modules are these, and compute so many unmasked pairs of so many."""
    found, causality = measure(model, given)
    assert found.keys() == {(module, phase) for module in pairs for phase in ("forward", "backward")}
    for module, (unmasked, square) in pairs.items():
        assert found[module, "forward"][:2] == (products(unmasked), products(square)), module
        assert found[module, "backward"][:2] == (2 * products(unmasked), 2 * products(square)), module
    assert causality == dict.fromkeys(pairs, "known")
