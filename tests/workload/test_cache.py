"""The cache of a generation, whatever a release of transformers calls it."""

import logging
import warnings

import pytest
import torch
import transformers
from torch import nn

from gpuprof.errors import GpuprofError
from gpuprof.workload import Options, build
from gpuprof.workload.steps import CACHE_NAMES, generate_seq2seq_step, generate_step

GENERATORS = ["llama-3.1-8b", "mixtral-8x7b", "gpt2", "t5-small", "whisper-small", "llava-onevision-qwen2-7b"]
PROMPT = torch.zeros(1, 5, dtype=torch.long)


class Output(dict):
    """Answers to its own fields alone, as the library's will once the deprecated ones are gone."""

    __getattr__ = dict.__getitem__


class Counter(nn.Module):
    """Its cache is the number of tokens it has seen, and so is the next token."""

    def __init__(self, returns):
        super().__init__()
        self.returns = returns

    def get_encoder(self):
        return lambda **inputs: None

    def answer(self, ids, seen):
        seen = (seen or 0) + ids.shape[1]
        logits = nn.functional.one_hot(torch.full_like(ids, seen), 32)
        return Output(logits=logits, **{self.returns: seen})


class Newest(Counter):
    def forward(self, input_ids=None, decoder_input_ids=None, encoder_outputs=None, cache=None, use_cache=None):
        return self.answer(input_ids if decoder_input_ids is None else decoder_input_ids, cache)


class Older(Counter):
    def forward(
        self, input_ids=None, decoder_input_ids=None, encoder_outputs=None, past_key_values=None, use_cache=None
    ):
        return self.answer(input_ids if decoder_input_ids is None else decoder_input_ids, past_key_values)


class StateSpace(Counter):
    def forward(self, input_ids=None, decoder_input_ids=None, encoder_outputs=None, cache_params=None, use_cache=None):
        return self.answer(input_ids if decoder_input_ids is None else decoder_input_ids, cache_params)


class Renamed(Counter):
    def forward(self, input_ids=None, memory=None, use_cache=None):
        return self.answer(input_ids, memory)


@pytest.mark.parametrize("returns", CACHE_NAMES)
@pytest.mark.parametrize("kind", [Newest, Older, StateSpace])
def test_taken_and_returned_under_any_name(kind, returns):
    decoder = generate_step(kind(returns), {"input_ids": PROMPT}, 4, call_options={})
    assert decoder().tolist() == [[5, 6, 7, 8]]

    inputs = {"input_ids": PROMPT, "decoder_input_ids": PROMPT[:, :2]}
    assert generate_seq2seq_step(kind(returns), inputs, 3)().tolist() == [[2, 3, 4]]


@pytest.mark.parametrize(
    ("model", "does"), [(Renamed("cache"), "Renamed .* takes"), (Newest("memory"), "Newest .* returns")]
)
def test_a_name_that_nobody_knows_yet_is_one_line(model, does):
    with pytest.raises(GpuprofError, match=f"^{does} no cache under a name that gpuprof knows .*--mode forward$"):
        generate_step(model, {"input_ids": PROMPT}, 2, call_options={})()


def test_a_decoder_whose_argument_is_renamed_is_refused_before_it_runs(tiny, monkeypatch):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", Renamed.forward)
    with pytest.raises(GpuprofError) as refused:
        build(tiny("llama-3.1-8b"), Options(mode="generate"))
    assert str(refused.value) == (
        f"LlamaForCausalLM cannot --mode generate: with transformers {transformers.__version__} it takes no cache "
        "under a name that gpuprof knows (cache, past_key_values, cache_params, state); use --mode forward"
    )


@pytest.mark.parametrize("name", GENERATORS)
def test_nothing_deprecated_is_asked_for(tiny, monkeypatch, name):
    """A keyword or a field that the library still answers to, and will not in a later release."""
    logged = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda _, message, *args: logged.append(message))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        build(tiny(name), Options(mode="generate", new_tokens=3)).step()
    assert not logged


def test_a_state_space_model_generates(tmp_path):
    """Its cache, which holds no keys, has had a name of its own."""
    config = transformers.MambaConfig(
        hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=32, architectures=["MambaForCausalLM"]
    )
    config.save_pretrained(tmp_path)
    workload = build(str(tmp_path), Options(mode="generate", prompt_len=6, new_tokens=5))
    prompts = []
    hook = workload.model.register_forward_pre_hook(
        lambda module, args, kwargs: prompts.append(kwargs["input_ids"]), with_kwargs=True
    )
    tokens = workload.step()
    hook.remove()

    whole = prompts[0]
    with torch.no_grad():
        for _ in range(5):
            whole = torch.cat([whole, workload.model(whole, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(tokens, whole[:, 6:])
