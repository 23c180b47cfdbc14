"""gpuprof's own loop gives the tokens that transformers' own `generate` gives, with either cache."""

import pytest
import torch
import transformers

from gpuprof.errors import GpuprofError
from gpuprof.workload import Options, build

NEW = 6
DECODER = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256,
}  # fmt: skip
LOUD = {"initializer_range": 0.5}  # so that tokens depend on what was said before
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**DECODER, **LOUD, architectures=["LlamaForCausalLM"]),
    "mixtral": lambda: transformers.MixtralConfig(
        **DECODER, **LOUD, num_local_experts=4, architectures=["MixtralForCausalLM"]
    ),
    "mistral, a window shorter than the prompt": lambda: transformers.MistralConfig(
        **DECODER, **LOUD, sliding_window=6, head_dim=16, architectures=["MistralForCausalLM"]
    ),
    "gemma2, every other layer": lambda: transformers.Gemma2Config(
        **DECODER, sliding_window=6, head_dim=16, architectures=["Gemma2ForCausalLM"]
    ),
    "t5": lambda: transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=256,
        decoder_start_token_id=0, initializer_factor=5.0, architectures=["T5ForConditionalGeneration"],
    ),
    "whisper": lambda: transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50, max_target_positions=32, vocab_size=256,
        decoder_start_token_id=250, pad_token_id=251, bos_token_id=251, eos_token_id=251, init_std=0.5,
        architectures=["WhisperForConditionalGeneration"],
    ),
    "llava-onevision": lambda: transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28,
            patch_size=7,
        ),
        text_config=transformers.Qwen2Config(**DECODER, **LOUD), image_token_index=252, video_token_index=253,
        image_grid_pinpoints=[[28 * rows, 28 * columns] for rows in range(1, 4) for columns in range(1, 4)],
        architectures=["LlavaOnevisionForConditionalGeneration"],
    ),
}  # fmt: skip


def given_to(module, calls):
    return module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_the_tokens_are_those_of_generate(tmp_path, name, cache):
    MODELS[name]().save_pretrained(tmp_path)
    sizes = {} if name in ("whisper", "llava-onevision") else {"prompt_len": 12}
    workload = build(
        str(tmp_path), Options(mode="generate", new_tokens=NEW, batch_size=2, cache=cache, device="cpu", **sizes)
    )
    model, calls = workload.model, []
    called = [model, model.get_encoder()] if model.config.is_encoder_decoder else [model]
    hooks = [given_to(module, calls) for module in called]
    tokens = workload.step()
    for hook in hooks:
        hook.remove()
    assert len(calls) == NEW + len(called) - 1

    own = {"cache", "past_key_values", "use_cache", "logits_to_keep", "encoder_outputs"}
    prompt = {key: value for call in calls[: len(called)] for key, value in call.items() if key not in own}
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    how = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    theirs = model.generate(**prompt, do_sample=False, max_new_tokens=NEW, **how)
    assert torch.equal(tokens, theirs[:, -NEW:])
    assert len(tokens.unique()) > 2  # of a model that says one word alone any loop gives the same
    assert workload.description["cache"] == cache


def test_a_model_without_a_static_cache_is_refused(tmp_path):
    transformers.MambaConfig(
        hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=32, architectures=["MambaForCausalLM"]
    ).save_pretrained(tmp_path)
    with pytest.raises(GpuprofError) as refused:
        build(str(tmp_path), Options(mode="generate", cache="static"))
    assert str(refused.value) == (
        f"MambaForCausalLM cannot --cache static: with transformers {transformers.__version__} it only has a cache "
        "that it makes itself; use --cache dynamic"
    )


def test_what_is_no_generation_has_no_cache(tiny):
    assert build(tiny("llama-3.1-8b"), Options(mode="forward")).description["cache"] is None
