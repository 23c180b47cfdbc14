"""Bytes that must move in a generation, against the tensors that are really there and arithmetic of its own."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import gpuprof
from gpuprof.analysis.consistency import inconsistencies
from gpuprof.analysis.generation import unknown_bytes
from gpuprof.workload.steps import generate_seq2seq_step, generate_step

SAMPLES, PROMPT, NEW = 2, 12, 4
HIDDEN, INNER, LAYERS, HEADS, KEYS, VOCABULARY = 64, 128, 2, 4, 2, 256
HEAD = HIDDEN // HEADS
SMALL = {
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS, "vocab_size": VOCABULARY,
}  # fmt: skip
IDS = torch.randint(3, 250, (SAMPLES, PROMPT), generator=torch.Generator().manual_seed(0))


def config(kind, **changes):
    return getattr(transformers, f"{kind}Config")(**SMALL | {"architectures": [f"{kind}ForCausalLM"]} | changes)


def made(of, **how):
    torch.manual_seed(0)
    model = getattr(transformers, of.architectures[0])._from_config(of, **how).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def decoder(model, **how):
    """gpuprof's own step."""
    return generate_step(model, {"input_ids": IDS}, NEW, call_options={}, **how)


def counted(model, step=None):
    return gpuprof.profile(model, step=step or decoder(model), mode="generate", passes=["count"])


def of_parts(run, what, dtype=None):
    """Bytes of each part of the whole model; None where nothing moves."""
    rows = run.traffic[(run.traffic["module"] == "*") & (run.traffic["what"] == what)]
    rows = rows if dtype is None else rows[rows["dtype"] == dtype]
    sums = rows.groupby("part")["bytes"].sum()
    parts = run.traffic["part"].dropna().max() + 1
    return [int(sums[part]) if part in sums.index else None for part in range(parts)]


def of_modules(run, what, phase):
    rows = run.traffic[run.traffic["part"].isna() & (run.traffic["what"] == what) & (run.traffic["phase"] == phase)]
    return {module: int(size) for module, size in rows.groupby("module")["bytes"].sum().items()}


def activations(run, phase):
    """Of the whole phase; without the angles of the positions, which some releases make by a product."""
    found = of_modules(run, "activations", phase)
    return sum(size for module, size in found.items() if not module.endswith("rotary_emb"))


def told(run):
    """Rows of the modules, but for those angles."""
    rows = run.traffic[run.traffic["part"].isna() & ~run.traffic["module"].str.endswith("rotary_emb")]
    return rows.drop(columns="part").to_numpy().tolist()


def watched(model, run, look):
    """What ``look`` finds in the cache after each call of the model."""
    found = []

    def hook(_, args, kwargs, output):
        cache = next(output[name] for name in ("cache", "past_key_values", "cache_params") if name in output)
        found.append(look(cache))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    run()
    handle.remove()
    return found


def tensors_in(value):
    """Floating tensors of a cache, by plain means."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return tensors_in(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else []


def nbytes(cache):
    return sum(tensor.nbytes for tensor in tensors_in(cache))


# -- the generation of the reference report


def test_each_phase_of_the_reference_is_as_derived_by_hand(llava_run):
    hidden, inner, layers, keys, words, prompt, steps = 3584, 18944, 28, 4 * 128, 152128, 7405, 6
    tower, tower_inner, depth, patches, crops = 1152, 4304, 26, 27 * 27, 16

    weights = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner  # of the products of a layer
    head = 2 * hidden * words
    one_crop = 2 * patches * tower * 3 * 14 * 14 + depth * (
        2 * patches * (4 * tower**2 + 2 * tower * tower_inner) + 4 * patches**2 * tower
    )
    image = crops * (one_crop + 2 * patches * (tower * hidden + hidden**2))

    def prefill(pairs):
        return image + layers * (2 * prompt * weights + 4 * pairs * hidden) + head

    decode = sum(layers * (2 * weights + 4 * (prompt + step) * hidden) + head for step in range(1, steps + 1))
    flops = llava_run.ops.groupby("phase")[["flops_full", "flops_causal"]].sum()
    assert flops.loc["prefill"].tolist() == [prefill(prompt**2), prefill(prompt * (prompt + 1) // 2)]
    assert flops.loc["decode"].tolist() == [decode, decode]
    assert flops.sum().tolist() == [129_418_906_075_136, 118_414_984_134_656]

    language = layers * (weights + hidden + 2 * keys + 2 * hidden) + hidden + hidden * words  # biases of q, k, v; norms
    angles = 4 * 64
    assert of_parts(llava_run, "weights")[1:] == [2 * (language + hidden) + angles] * steps
    seen = tower * 3 * 14 * 14 + tower + patches * tower + 2 * tower
    seen += depth * (4 * (tower**2 + tower) + 2 * tower * tower_inner + tower_inner + tower + 4 * tower)
    seen += tower * hidden + hidden + hidden**2 + hidden + hidden  # projector, and the end of a line
    places = 8 * patches
    assert of_parts(llava_run, "weights")[0] == 2 * (seen + language + prompt * hidden) + angles + places

    position = 2 * layers * keys * 2
    assert of_parts(llava_run, "cache read") == [None, *(position * (prompt + step) for step in range(steps))]
    assert of_parts(llava_run, "cache written") == [position * prompt, *[position] * steps]
    # in and out of q, k, v, the attention, o, gate, up and down, and of the head
    widths = 2 * hidden + 2 * (hidden + keys) + 2 * hidden + 2 * hidden + 2 * (hidden + inner) + inner + hidden
    assert activations(llava_run, "decode") == steps * 2 * (layers * widths + hidden + words)
    assert not inconsistencies(llava_run)
    assert not unknown_bytes(llava_run)


# -- figures of others


def test_llama_2_7b_at_2048_as_llm_viewer_has_it(tmp_path):
    """By its formulas (hahnyuan/LLM-Viewer 472f71f): weights of products alone, the new keys among those read."""
    of = transformers.LlamaConfig(architectures=["LlamaForCausalLM"], tie_word_embeddings=False)
    of.save_pretrained(tmp_path)
    run = gpuprof.count(str(tmp_path), mode="generate", prompt_len=2047, new_tokens=2, batch_size=1, dtype="float16")
    norms, row, angles = 65 * 4096 * 2, 4096 * 2, 64 * 4
    assert of_parts(run, "weights")[1] == 13_214_154_752 + norms + row + angles
    (_, read), (_, written) = of_parts(run, "cache read"), of_parts(run, "cache written")
    assert written == 524_288
    assert read + written == 1_073_741_824


def test_llama_2_70b_holds_what_databricks_says(tmp_path):
    """Its table 3: 0.3125 GiB at 1,024 positions."""
    config(
        "Llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8,
    ).save_pretrained(tmp_path)  # fmt: skip
    run = gpuprof.count(str(tmp_path), mode="generate", prompt_len=1024, new_tokens=1, batch_size=1, dtype="float16")
    assert of_parts(run, "cache written") == [5 * 2**30 // 16]


# -- weights


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_read_once_and_of_the_embedding_rows(tied):
    model = made(config("Llama", tie_word_embeddings=tied))
    run = counted(model)
    layer = 2 * HIDDEN**2 + 2 * HIDDEN * KEYS * HEAD + 3 * HIDDEN * INNER + 2 * HIDDEN
    head, angles = HIDDEN * VOCABULARY, HEAD // 2
    once = LAYERS * layer + HIDDEN + head + angles
    rows = {True: (0, 0), False: (SAMPLES * PROMPT * HIDDEN, SAMPLES * HIDDEN)}[tied]  # tied ones are among the rest
    assert of_parts(run, "weights") == [4 * (once + rows[0]), *[4 * (once + rows[1])] * (NEW - 1)]
    assert of_modules(run, "weights", "decode")["model.layers.1.mlp.up_proj"] == 3 * 4 * HIDDEN * INNER
    assert of_modules(run, "weights", "decode")["model.embed_tokens"] == 3 * 4 * SAMPLES * HIDDEN


@pytest.mark.parametrize("how", ["grouped_mm", "batched_mm", "eager"])
def test_of_experts_only_those_with_tokens(how):
    experts, width = 8, 32
    model = made(config("Mixtral", num_local_experts=experts, num_experts_per_tok=2, intermediate_size=width))
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(how)
    chosen = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda _, args: chosen.append(len(args[1].unique())))
    decoder(model)()
    routed = [sum(chosen[step * LAYERS : (step + 1) * LAYERS]) for step in range(NEW)]
    chosen.clear()
    run = counted(model)
    rest = LAYERS * (2 * HIDDEN**2 + 2 * HIDDEN * KEYS * HEAD + experts * HIDDEN + 2 * HIDDEN) + HIDDEN
    rest += HIDDEN * VOCABULARY + HEAD // 2
    rows = [SAMPLES * PROMPT, *[SAMPLES] * (NEW - 1)]
    assert min(routed) < LAYERS * experts
    assert of_parts(run, "weights") == [
        4 * (rest + row * HIDDEN + hit * 3 * HIDDEN * width) for row, hit in zip(rows, routed, strict=True)
    ]
    assert "weights_at_most" not in run.passes["count"].facts


def test_without_values_as_many_experts_as_rows_at_most(tmp_path):
    experts = 16
    of = config("Mixtral", num_local_experts=experts, num_experts_per_tok=2, intermediate_size=32)
    of.save_pretrained(tmp_path)
    run = gpuprof.count(str(tmp_path), mode="generate", prompt_len=PROMPT, new_tokens=2, batch_size=2)
    assert run.passes["count"].facts["weights_at_most"] == [f"model.layers.{n}.mlp.experts" for n in range(LAYERS)]
    experts_of = of_modules(run, "weights", "decode")["model.layers.0.mlp.experts"]
    assert experts_of == 4 * (2 * 2) * 3 * HIDDEN * 32  # two samples to two experts each


class Quantized(torch.Tensor):
    """Bytes and their scale, bfloat16 to the model."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.bfloat16)

    def __init__(self, data, scale):
        self.data8, self.scale = data, scale

    def __tensor_flatten__(self):
        return ["data8", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["data8"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].data8, args[0].scale)
        whole = tree_map(lambda one: one.data8.to(one.dtype) * one.scale if isinstance(one, cls) else one, args)
        return func(*whole, **(kwargs or {}))


def test_quantized_weights_as_they_are_stored():
    model = made(config("Llama")).to(torch.bfloat16)
    for layer in model.model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            data, scale = linear.weight.detach().to(torch.int8), torch.ones(len(linear.weight), 1, dtype=torch.bfloat16)
            linear.weight = nn.Parameter(Quantized(data, scale), requires_grad=False)
    run = counted(model)
    assert of_parts(run, "weights", "int8") == [LAYERS * 3 * HIDDEN * INNER] * NEW
    attention = 2 * HIDDEN**2 + 2 * HIDDEN * KEYS * HEAD + 2 * HIDDEN
    scales = 2 * INNER + HIDDEN
    rest = LAYERS * (attention + scales) + HIDDEN + HIDDEN * VOCABULARY + SAMPLES * HIDDEN + HEAD // 2
    assert of_parts(run, "weights", "bfloat16")[1:] == [2 * rest] * (NEW - 1)
    plain = counted(made(config("Llama")).to(torch.bfloat16))
    assert of_parts(run, "activations") == of_parts(plain, "activations")


class Packed(nn.Linear):
    """Its scales are on its parameter, as those of bitsandbytes are."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(linear.weight.detach().to(torch.uint8), requires_grad=False)
        self.weight.quant_state = type("State", (), {})()
        self.weight.quant_state.absmax = torch.ones(linear.out_features, 1)

    def forward(self, x):
        return x @ (self.weight.float() * self.weight.quant_state.absmax).t()


def test_scales_that_a_parameter_carries():
    model = made(config("Llama", tie_word_embeddings=False))
    model.lm_head = Packed(model.lm_head)
    run = counted(model)
    assert of_parts(run, "weights", "uint8") == [HIDDEN * VOCABULARY] * NEW
    assert of_modules(run, "weights", "decode")["lm_head"] == 3 * (HIDDEN * VOCABULARY + 4 * VOCABULARY)


@pytest.mark.parametrize("kept", [True, False])
def test_autocast_reads_what_is_stored_or_the_copy_that_it_keeps(kept):
    model = made(config("Llama", tie_word_embeddings=False))
    own = decoder(model)

    def step():
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=kept):
            return own()

    run = counted(model, step)
    multiplied = LAYERS * (2 * HIDDEN**2 + 2 * HIDDEN * KEYS * HEAD + 3 * HIDDEN * INNER) + HIDDEN * VOCABULARY
    rest = LAYERS * 2 * HIDDEN + HIDDEN + HEAD // 2 + SAMPLES * HIDDEN
    assert of_parts(run, "weights", "bfloat16") == [None, *[2 * multiplied if kept else None] * (NEW - 1)]
    assert of_parts(run, "weights", "float32")[1:] == [4 * (rest + (0 if kept else multiplied))] * (NEW - 1)


# -- the cache


CACHES = {
    "llama": lambda: config("Llama"),
    "deepseek": lambda: config(
        "DeepseekV3", num_key_value_heads=4, moe_intermediate_size=32, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=16,
    ),
    "falcon": lambda: config("Falcon"),
}  # fmt: skip


@pytest.mark.parametrize("name", CACHES)
def test_what_only_grows_is_read_and_written_in_all(name):
    model = made(CACHES[name]())
    held = watched(model, decoder(model), nbytes)
    run = counted(model)
    read, written = of_parts(run, "cache read"), of_parts(run, "cache written")
    assert read == [None, *held[:-1]]
    assert [(r or 0) + w for r, w in zip(read, written, strict=True)] == held
    assert run.passes["count"].facts["cache"]["bytes"] == held
    assert not inconsistencies(run)
    assert not unknown_bytes(run)


def test_keys_and_values_are_of_the_layer_that_has_them():
    run = counted(made(config("Llama")))
    position = 2 * SAMPLES * KEYS * HEAD * 4
    assert of_modules(run, "cache written", "decode") == {
        f"model.layers.{n}.self_attn": position * (NEW - 1) for n in range(LAYERS)
    }
    assert of_modules(run, "cache read", "decode") == {
        f"model.layers.{n}.self_attn": position * sum(range(PROMPT, PROMPT + NEW - 1)) for n in range(LAYERS)
    }


@pytest.mark.parametrize("static", [False, True])
def test_of_a_sliding_window_what_it_keeps(static):
    window, kinds = 6, ["sliding_attention", "full_attention"]
    of = config("Gemma3Text", sliding_window=window, head_dim=HEAD, layer_types=kinds)
    of.architectures = ["Gemma3ForCausalLM"]
    model = made(of)
    run = counted(model, decoder(model, static=static))
    position = 2 * SAMPLES * KEYS * HEAD * 4
    assert of_parts(run, "cache read") == [None, *(position * (PROMPT + n + window - 1) for n in range(NEW - 1))]
    kept = window if static else window - 1
    assert of_parts(run, "cache written") == [position * (PROMPT + kept), *[2 * position] * (NEW - 1)]


@pytest.mark.parametrize("weightless", [False, True])
def test_of_a_static_cache_what_is_filled(tmp_path, weightless):
    config("Llama").save_pretrained(tmp_path)
    how = {"mode": "generate", "prompt_len": PROMPT, "new_tokens": NEW, "batch_size": SAMPLES}
    runs = [
        gpuprof.count(str(tmp_path), cache=cache, **how) if weightless
        else gpuprof.profile(str(tmp_path), cache=cache, passes=["count"], device="cpu", **how)
        for cache in ("dynamic", "static")
    ]  # fmt: skip
    assert [run.workload["cache"] for run in runs] == ["dynamic", "static"]
    assert [run.passes["count"].facts["cache"]["class"] for run in runs] == ["DynamicCache", "StaticCache"]
    assert runs[0].traffic.equals(runs[1].traffic)


def test_layers_that_share_keys_hold_them_once():
    of = config(
        "Gemma3nText", num_hidden_layers=4, intermediate_size=[INNER] * 4, head_dim=HEAD, sliding_window=32,
        num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2, laurel_rank=8,
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=16, altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    of.architectures = ["Gemma3nForCausalLM"]
    run = counted(made(of))
    position = 2 * 2 * SAMPLES * KEYS * HEAD * 4  # of two of the four layers
    assert of_parts(run, "cache read") == [None, *(position * (PROMPT + n) for n in range(NEW - 1))]
    assert of_parts(run, "cache written") == [position * PROMPT, *[position] * (NEW - 1)]


def test_states_are_read_and_written_whole():
    width, states = 16, 4
    of = transformers.MambaConfig(
        hidden_size=width, num_hidden_layers=LAYERS, state_size=states, vocab_size=VOCABULARY,
        architectures=["MambaForCausalLM"],
    )  # fmt: skip
    run = counted(made(of))
    whole = LAYERS * SAMPLES * 2 * width * (of.conv_kernel + states) * 4
    assert of_parts(run, "cache read") == [None, *[whole] * (NEW - 1)]
    assert of_parts(run, "cache written") == [whole] * NEW


def test_states_beside_keys():
    if not hasattr(transformers.cache_utils, "LinearAttentionLayer"):
        pytest.skip("a release whose Bamba makes no cache by itself")
    of = config(
        "Bamba", attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=32, mamba_n_groups=1, mamba_d_state=16,
        mamba_d_conv=4, mamba_expand=2, mamba_chunk_size=4,
    )  # fmt: skip
    run = counted(made(of))
    state = SAMPLES * 4 * ((128 + 2 * 16) * 4 + 4 * 32 * 16)
    position = 2 * SAMPLES * KEYS * HEAD * 4
    assert of_parts(run, "cache read") == [None, *(state + position * (PROMPT + n) for n in range(NEW - 1))]
    assert of_parts(run, "cache written") == [state + position * PROMPT, *[state + position] * (NEW - 1)]


def seq2seq(name):
    if name == "t5":
        return transformers.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=VOCABULARY,
            decoder_start_token_id=0, architectures=["T5ForConditionalGeneration"],
        ), {"input_ids": IDS}, PROMPT  # fmt: skip
    sound = torch.randn(SAMPLES, 80, 100, generator=torch.Generator().manual_seed(0))
    return transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50, max_target_positions=32, vocab_size=VOCABULARY,
        decoder_start_token_id=250, pad_token_id=251, bos_token_id=251, eos_token_id=251,
        architectures=["WhisperForConditionalGeneration"],
    ), {"input_features": sound}, 50  # fmt: skip


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_cross_attention_is_written_once_and_read_in_every_step(name, static):
    of, inputs, encoded = seq2seq(name)
    model = made(of)
    inputs = inputs | {"decoder_input_ids": torch.full((SAMPLES, 1), of.decoder_start_token_id)}
    run = counted(model, generate_seq2seq_step(model, inputs, NEW, static=static))
    position = 2 * 2 * SAMPLES * 32 * 4
    assert of_parts(run, "cache read") == [None, None, *(position * (encoded + n) for n in range(1, NEW))]
    assert of_parts(run, "cache written") == [None, position * (encoded + 1), *[position] * (NEW - 1)]
    phases = run.traffic.dropna(subset="part").drop_duplicates("part")["phase"].tolist()
    assert phases == ["encode", "prefill", *["decode"] * (NEW - 1)]
    assert not unknown_bytes(run)


def test_a_quantized_cache_as_it_is_stored():
    model = made(config("Llama"))
    if not hasattr(transformers.cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("a release without fp8 caches")
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    run = counted(model, lambda: model.generate(IDS, do_sample=False, max_new_tokens=NEW, **options))
    position, scales = 2 * LAYERS * SAMPLES * KEYS * HEAD, 2 * LAYERS * 4
    assert of_parts(run, "cache read", "float8_e4m3fn") == [None, *(position * (PROMPT + n) for n in range(NEW - 1))]
    assert of_parts(run, "cache written", "float8_e4m3fn") == [position * PROMPT, *[position] * (NEW - 1)]
    assert of_parts(run, "cache read", "float32") == [None, *[scales] * (NEW - 1)]


class Own(nn.Module):
    """A layer of attention that keeps its keys and values itself."""

    def __init__(self, how, width=16, room=32):
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.head = nn.Linear(width, 32, bias=False)
        self.how = how
        keys, values = torch.zeros(2, SAMPLES, 1, room, width)
        if how == "buffers":
            self.register_buffer("keys", keys)
            self.register_buffer("values", values)
        else:
            self.keys, self.values = keys, values

    def forward(self, ids, places):
        q, k, v = (part.unsqueeze(1) for part in self.qkv(self.embedding(ids)).chunk(3, -1))
        mask = None
        if self.how == "new tensors":
            kept = int(places[0])
            self.keys = torch.cat([self.keys, k], 2) if kept else k.clone()
            self.values = torch.cat([self.values, v], 2) if kept else v.clone()
        elif self.how == "buffers":
            self.keys[:, :, places] = k
            self.values[:, :, places] = v
        else:
            first, last = int(places[0]), int(places[-1])
            self.keys[:, :, first : last + 1] = k
            self.values[:, :, first : last + 1] = v
        if self.how != "new tensors":
            mask = torch.arange(self.keys.shape[2])[None, :] <= places[:, None]
        return self.head(F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask).squeeze(1))


@pytest.mark.parametrize("how", ["buffers", "attributes", "new tensors"])
def test_a_cache_that_modules_keep_themselves(how):
    model, width = Own(how), 16

    def step():
        with torch.no_grad():
            logits = model(IDS % 32, torch.arange(PROMPT))
            for place in range(PROMPT, PROMPT + NEW - 1):
                logits = model(logits[:, -1:].argmax(-1), torch.tensor([place]))

    run = counted(model, step)
    position = 2 * SAMPLES * width * 4
    assert of_parts(run, "cache read") == [None, *(position * (PROMPT + n) for n in range(NEW - 1))]
    assert of_parts(run, "cache written") == [position * PROMPT, *[position] * (NEW - 1)]
    assert of_parts(run, "weights")[1:] == [4 * (3 * width**2 + 32 * width + SAMPLES * width)] * (NEW - 1)
    assert not unknown_bytes(run)


# -- activations


def test_an_attention_that_is_spelled_out_moves_no_more():
    runs = [counted(made(config("Llama"), attn_implementation=how)) for how in ("eager", "sdpa")]
    products = 2 * HIDDEN + 2 * (HIDDEN + KEYS * HEAD) + 2 * HIDDEN + 2 * HIDDEN + 3 * (HIDDEN + INNER)
    decode = 4 * SAMPLES * (LAYERS * products + HIDDEN + VOCABULARY)
    assert [activations(run, "decode") for run in runs] == [decode * (NEW - 1)] * 2
    assert told(runs[0]) == told(runs[1])


# -- steps of a user's own


def phases(run):
    return run.traffic.dropna(subset="part").drop_duplicates("part")["phase"].tolist()


def test_generate_of_transformers_moves_the_same():
    model = made(config("Llama"))
    theirs = counted(model, lambda: model.generate(IDS, do_sample=False, max_new_tokens=NEW))
    ours = counted(model, generate_step(model, {"input_ids": IDS}, NEW, call_options={"logits_to_keep": 1}))
    assert told(theirs) == told(ours)


def test_a_prompt_in_pieces_and_two_generations():
    model = made(config("Llama"))
    position = 2 * LAYERS * SAMPLES * KEYS * HEAD * 4

    def step():
        model.generate(IDS, do_sample=False, max_new_tokens=2, prefill_chunk_size=5)
        model.generate(IDS[:, :3], do_sample=False, max_new_tokens=2)

    run = counted(model, step)
    assert phases(run) == ["prefill", "prefill", "prefill", "decode", "prefill", "decode"]
    read = [None, 5, 10, 12, None, 3]
    assert of_parts(run, "cache read") == [size and size * position for size in read]
    assert of_parts(run, "cache written") == [size * position for size in (5, 5, 2, 1, 3, 1)]
    assert not inconsistencies(run)


def test_an_assistant_is_said_and_nothing_is_divided_by_its_time():
    model, assistant = made(config("Llama")), made(config("Llama", num_hidden_layers=1))
    step = lambda: model.generate(IDS[:1], assistant_model=assistant, do_sample=False, max_new_tokens=NEW)  # noqa: E731
    run = counted(model, step)
    why = "the step runs another model beside LlamaForCausalLM, whose cache is not seen"
    assert run.passes["count"].facts["traffic_unknown"][0] == why
    assert unknown_bytes(run).startswith(f"unknown: {why}")
    assert phases(run)[0] == "prefill"
    assert set(phases(run)[1:]) == {"decode"}


def test_what_is_carried_over_unseen_is_not_counted_as_nothing():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 16)

        def forward(self, x):
            held.append(self.head(x))
            return sum(held) @ held[-1].mT

    held = []

    def step():
        held.clear()
        with torch.no_grad():
            model(torch.ones(1, 5, 16))
            model(torch.ones(1, 5, 16))

    model = Outside()
    run = counted(model, step)
    (why,) = run.passes["count"].facts["traffic_unknown"]
    assert why == "the prefill reads 320 bytes that an earlier call has left in no cache that gpuprof knows"


def test_a_cache_that_only_the_step_knows_is_not_counted_as_nothing():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 16)

        def forward(self, x, past=None):
            x = x if past is None else torch.cat([past, x], 1)
            return self.head(x.mean(1)), x

    def step():
        with torch.no_grad():
            _, past = model(torch.ones(1, 5, 16))
            model(torch.ones(1, 1, 16), past)

    model = Own()
    (why,) = counted(model, step).passes["count"].facts["traffic_unknown"]
    assert why.endswith("reads 320 bytes that an earlier call has left in no cache that gpuprof knows")


def test_a_step_that_calls_parts_of_the_model_has_no_parts():
    model = made(config("Llama"))

    def step():
        with torch.no_grad():
            return model.lm_head(model.model(IDS)[0])

    run = counted(model, step)
    assert run.traffic.empty
    assert unknown_bytes(run).startswith("unknown: the step never calls the model itself")


def test_bytes_that_are_not_all_of_the_cache_are_an_inconsistency():
    run = counted(made(config("Llama")))
    run.passes["count"].facts["cache"]["bytes"][2] += 64
    held = run.passes["count"].facts["cache"]["bytes"][2]
    (line,) = inconsistencies(run)
    assert line == (
        f"DynamicCache holds {held:,} bytes after part 2 of the generation, of which {held - 64:,} were read and "
        "written: not all of its traffic is counted"
    )
    assert unknown_bytes(run) == f"unknown: {line}"


def test_it_is_counted_in_generations_alone():
    run = gpuprof.profile(made(config("Llama")), {"input_ids": IDS}, mode="forward", passes=["count"])
    assert run.traffic.empty
    assert not {"cache", "traffic_unknown"} & {*run.passes["count"].facts}
    assert not unknown_bytes(run)
