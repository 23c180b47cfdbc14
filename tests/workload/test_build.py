import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from gpuprof.errors import GpuprofError, is_out_of_memory
from gpuprof.workload import Options, build, preset_names

DECODERS = ["smollm2-135m", "qwen2-7b", "llama-3.1-8b", "mixtral-8x7b", "gpt2"]
TEXT = [*DECODERS, "bert-base", "t5-small", "whisper-small"]
GENERATORS = [*DECODERS, "t5-small", "whisper-small"]


def sizes(name, **lengths):
    return lengths if name in TEXT else {}


def inputs_of(workload):
    return {tensor["name"]: tensor["shape"] for tensor in workload.description["inputs"]}


@pytest.mark.parametrize("name", preset_names())
def test_train(tiny, name):
    workload = build(tiny(name), Options(batch_size=2, **sizes(name, seq_len=8)))
    expected = "mean of the first output" if name == "siglip-so400m-384" else "model's own .loss"
    assert workload.description["loss"] == expected

    loss = workload.step()

    assert loss.shape == ()
    assert math.isfinite(loss.item())
    assert workload.model.training
    assert any(parameter.grad is not None for parameter in workload.model.parameters())
    assert workload.description["loss"] == expected
    assert workload.description["weights"] == "random"
    assert workload.description["dtype"] == "float32"
    assert workload.description["samples_per_step"] == 2
    assert workload.owned


@pytest.mark.parametrize("name", preset_names())
def test_forward(tiny, name):
    workload = build(tiny(name), Options(mode="forward", batch_size=2, **sizes(name, seq_len=8)))

    first = workload.step()[0]

    assert first.shape[0] == 2
    assert not first.requires_grad
    assert not workload.model.training
    assert "labels" not in inputs_of(workload)
    assert workload.description["loss"] is None


@pytest.mark.parametrize("name", GENERATORS)
def test_generate(tiny, name):
    options = Options(mode="generate", batch_size=2, prompt_len=6, new_tokens=4)
    workload = build(tiny(name), options)
    calls = []
    workload.model.register_forward_hook(lambda module, args, output: calls.append(output.logits.shape[1]))

    tokens = workload.step()

    prefill = 6 if name == "whisper-small" else 1
    assert calls == [prefill, 1, 1, 1]
    assert tokens.shape == (2, 4)
    assert torch.equal(tokens, workload.step())


def test_generation_gives_the_tokens_that_the_library_gives(tiny):
    workload = build(tiny("llama-3.1-8b"), Options(mode="generate", prompt_len=6, new_tokens=5))
    prompt = torch.tensor([[5, 6, 7, 8, 9, 10]])
    build_step = build(tiny("llama-3.1-8b"), Options(mode="forward", seq_len=6))

    # The same weights from the same seed, so whole forwards must choose the same tokens.
    whole = captured_prompt(workload)
    assert whole.shape == prompt.shape
    expected = []
    for _ in range(5):
        logits = build_step.model(whole, use_cache=False).logits
        expected.append(logits[:, -1:].argmax(-1))
        whole = torch.cat([whole, expected[-1]], dim=1)
    assert torch.equal(workload.step(), torch.cat(expected, dim=1))


def captured_prompt(workload):
    seen = []
    hook = workload.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    workload.step()
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("name", "prefix"), [("t5-small", ""), ("whisper-small", "model.")])
def test_the_encoder_of_a_generation_runs_once(tiny, name, prefix):
    workload = build(tiny(name), Options(mode="generate", prompt_len=3, new_tokens=4))
    runs = []
    for part in ("encoder", "decoder"):
        module = workload.model.get_submodule(prefix + part)
        module.register_forward_hook(lambda *_, part=part: runs.append(part))

    workload.step()

    assert runs == ["encoder", "decoder", "decoder", "decoder", "decoder"]


def test_seq_len_of_whisper_is_the_decoders(tiny):
    workload = build(tiny("whisper-small"), Options(seq_len=8))

    assert inputs_of(workload) == {"input_features": [1, 80, 100], "labels": [1, 8]}
    assert workload.description["tokens_per_step"] == 8


def test_tokens_per_step(tiny):
    def tokens(name, **options):
        return build(tiny(name), Options(batch_size=3, **options)).description["tokens_per_step"]

    assert tokens("llama-3.1-8b", seq_len=8) == 24
    assert tokens("llama-3.1-8b", mode="generate", prompt_len=8, new_tokens=3) == 30
    assert tokens("t5-small", seq_len=8) == 48
    assert tokens("t5-small", mode="generate", prompt_len=8, new_tokens=3) == 33
    assert tokens("vit-base-16") is None


def test_two_builds_are_the_same(tiny):
    folder = tiny("gpt2")
    first, second = (build(folder, Options(mode="forward", seq_len=8, seed=3)) for _ in range(2))
    other = build(folder, Options(mode="forward", seq_len=8, seed=4))

    assert torch.equal(first.step().logits, second.step().logits)
    assert not torch.equal(first.step().logits, other.step().logits)


def test_random_ids_are_ordinary_tokens(tiny):
    workload = build(
        tiny("llama-3.1-8b", vocab_size=4, bos_token_id=0, eos_token_id=3),
        Options(mode="generate", prompt_len=50, new_tokens=1),
    )

    assert set(captured_prompt(workload).flatten().tolist()) == {1, 2}


@pytest.mark.parametrize("name", ["llama-3.1-8b", "t5-small", "vit-base-16", "llava-onevision-qwen2-7b"])
def test_weightless(tiny, name):
    workload = build(tiny(name), Options(), weightless=True)

    assert workload.device == torch.device("meta")
    assert workload.description["device"] == "meta"
    assert workload.description["weights"] == "none"
    assert all(parameter.is_meta for parameter in workload.model.parameters())


def test_weightless_inputs_are_real_integers_and_meta_floats(tiny):
    workload = build(tiny("llava-onevision-qwen2-7b"), Options(mode="generate"), weightless=True)
    seen = {}

    class SeenError(Exception):
        pass

    def look(module, args, kwargs):
        seen.update(kwargs)
        raise SeenError

    workload.model.register_forward_pre_hook(look, with_kwargs=True)
    with pytest.raises(SeenError):
        workload.step()

    assert {name: value.device.type for name, value in seen.items() if isinstance(value, torch.Tensor)} == {
        "input_ids": "cpu",
        "pixel_values": "meta",
        "image_sizes": "cpu",
    }
    assert seen["logits_to_keep"] == 1


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_our_optimizers_leave_the_parameters_as_they_are(tiny, kind):
    workload = build(tiny("llama-3.1-8b"), Options(seq_len=8, optimizer=kind))
    before = [parameter.clone() for parameter in workload.model.parameters()]

    losses = [workload.step().item() for _ in range(3)]

    assert len(set(losses)) == 1
    for old, new in zip(before, workload.model.parameters(), strict=True):
        assert torch.equal(old, new)
    if kind == "adamw":
        assert len(workload.optimizer.state) == len(before)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "vit-base-16", "t5-small", "llava-onevision-qwen2-7b"])
@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_checkpointing_runs_layers_twice_and_gives_the_same_gradients(tiny, name, kind):
    # Without dropout, whose masks would be drawn differently.
    folder = tiny(name, **({"dropout_rate": 0.0} if name == "t5-small" else {}))
    plain = build(folder, Options(**sizes(name, seq_len=8)))
    checkpointed = build(folder, Options(checkpointing=kind, **sizes(name, seq_len=8)))
    runs = []
    first_linear = next(m for m in checkpointed.model.modules() if isinstance(m, torch.nn.Linear))
    first_linear.register_forward_hook(lambda *_: runs.append(1))
    plain.step()
    checkpointed.step()

    assert len(runs) == 2
    for (path, one), two in zip(plain.model.named_parameters(), checkpointed.model.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), path
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad)


def test_reentrant_checkpointing_reaches_layers_behind_frozen_embeddings(tiny):
    options = Options(seq_len=8, checkpointing="reentrant", freeze=("model.embed_tokens",))
    workload = build(tiny("llama-3.1-8b"), options)
    workload.step()

    assert workload.model.model.embed_tokens.weight.grad is None
    assert workload.model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_checkpointing_is_refused_where_there_is_none(tiny):
    with pytest.raises(GpuprofError, match="ResNetForImageClassification has no activation checkpointing"):
        build(tiny("resnet-50"), Options(checkpointing="reentrant"))


def test_freeze(tiny):
    options = Options(seq_len=8, freeze=("model.layers.0", "*.mlp.up_proj.weight"))
    workload = build(tiny("smollm2-135m"), options)
    workload.step()

    for path, parameter in workload.model.named_parameters():
        frozen = path.startswith("model.layers.0.") or path.endswith("up_proj.weight")
        assert parameter.requires_grad != frozen, path
        assert (parameter.grad is None) == frozen, path


def test_freeze_must_match_and_leave_something(tiny):
    folder = tiny("smollm2-135m")
    with pytest.raises(GpuprofError, match=r"--freeze 'layer' matches no module .* are: model, lm_head"):
        build(folder, Options(freeze=("layer",)))
    with pytest.raises(GpuprofError, match="leaves nothing of LlamaForCausalLM to train"):
        build(folder, Options(freeze=("*",)))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention(tiny, attention):
    workload = build(tiny("llama-3.1-8b"), Options(attention=attention, seq_len=8))

    assert workload.model.config._attn_implementation == attention
    assert workload.description["attention"] == attention


def test_dtype(tiny):
    folder = tiny("llama-3.1-8b", dtype="float16")
    assert build(folder, Options(seq_len=8)).description["dtype"] == "float32"
    assert build(folder, Options(seq_len=8), weightless=True).description["dtype"] == "float16"
    workload = build(folder, Options(seq_len=8, dtype="bf16"))
    assert workload.description["dtype"] == "bfloat16"
    assert math.isfinite(workload.step().item())


def test_logging_is_given_back(tiny):
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    build(tiny("gpt2"), Options(seq_len=8))

    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def refusal(reference, weightless=False, **options):
    with pytest.raises(GpuprofError) as caught:
        build(str(reference), Options(**options), weightless=weightless)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_references_that_name_nothing(tmp_path):
    assert "did you mean qwen2-7b" in refusal("qwen2-7")
    assert "a preset, a local Hugging Face directory, a Hub id owner/name, or file.py:function" in refusal("xyz")
    assert refusal("./nowhere") == "no directory ./nowhere"
    assert refusal(tmp_path).startswith(f"no config.json in {tmp_path}")
    assert refusal(tmp_path / "missing.py:f") == f"no file {tmp_path / 'missing.py'}"
    assert "which function of model.py?" in refusal("model.py")
    (tmp_path / "weights.bin").write_text("")
    assert "is a file; MODEL is" in refusal(tmp_path / "weights.bin")


def test_no_more_positions_than_the_table_of_the_decoder_has(tmp_path):
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder")
             for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    fields = {
        "model_type": "led", "architectures": ["LEDForConditionalGeneration"], "d_model": 16, "vocab_size": 50,
        "attention_window": 4, "max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 16, **sizes,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))

    workload = build(str(tmp_path), Options(mode="forward"), weightless=True)

    assert [entry["shape"] for entry in workload.description["inputs"]] == [[1, 16], [1, 16]]
    build(str(tmp_path), Options(mode="forward", device="cpu")).step()
    with pytest.raises(GpuprofError, match="goes beyond the 16 positions"):
        build(str(tmp_path), Options(mode="forward", seq_len=17), weightless=True)


def test_configurations_that_are_not_usable(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    assert "names no architecture" in refusal(tmp_path)
    config.write_text('{"model_type": "llama", "architectures": ["LlamaForNothing"]}')
    assert "names LlamaForNothing, which transformers" in refusal(tmp_path)
    for architectures in ('"LlamaForCausalLM"', "[3]"):
        config.write_text(f'{{"model_type": "llama", "architectures": {architectures}}}')
        assert "names no architecture" in refusal(tmp_path)
    config.write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": "many"}')
    assert "Validation error for field 'hidden_size': TypeError: " in refusal(tmp_path)
    config.write_text("{")
    assert f"config.json in {tmp_path} is not usable" in refusal(tmp_path)
    config.write_text('{"model_type": "no-such-model", "architectures": ["X"]}')
    assert "is not usable" in refusal(tmp_path)


def test_own_code_runs_only_when_trusted(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "architectures": ["Own"],'
        ' "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own"}}'
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")

    assert "add --trust-remote-code" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_load(tiny):
    folder = tiny("gpt2")
    with open(f"{folder}/model.safetensors", "w") as file:
        file.write("no weights")

    assert f"the weights of {folder} do not load" in refusal(folder)


@pytest.mark.parametrize(("dtype", "remedy"), [("float32", "give --dtype bfloat16, or take"), ("bfloat16", "take")])
@pytest.mark.parametrize("named", ["smollm2-135m", None], ids=["preset", "weights"])
def test_a_model_that_does_not_fit_says_so(tiny, monkeypatch, named, dtype, remedy):
    def full(*args, **kwargs):
        raise torch.AcceleratorError("CUDA error: out of memory\nand more")

    folder = Path(tiny("gpt2"))
    (folder / "model.safetensors").touch()
    for name in ("_from_config", "from_pretrained"):
        monkeypatch.setattr(transformers.PreTrainedModel, name, full)
    doing = "LlamaForCausalLM is built" if named else f"the weights of {folder} are loaded"

    text = refusal(named or folder, device="cpu", dtype=dtype)

    assert text == f"out of memory on cpu while {doing}: {remedy} a smaller model"
    assert is_out_of_memory(text)


def test_weights_of_another_model(tmp_path, tiny):
    other = build(tiny("bert-base"), Options(seq_len=8)).model
    folder = tiny("gpt2")
    other.save_pretrained(tmp_path / "other")
    os.replace(tmp_path / "other" / "model.safetensors", f"{folder}/model.safetensors")

    assert "none of them belongs to GPT2LMHeadModel" in refusal(folder)


def test_no_cuda():
    assert "no CUDA device" in refusal("gpt2", device="cuda")
    assert "use --device cpu" in refusal("gpt2", device="cuda:1")
    assert "is no device" in refusal("gpt2", device="gpu")


def test_flash_attention_that_is_not_installed(tiny):
    if transformers.utils.is_flash_attn_2_available():
        pytest.skip("flash-attn is installed here")
    assert "--attention flash_attention_2" in refusal(tiny("gpt2"), attention="flash_attention_2", weightless=True)


def test_a_hub_id_that_is_not_cached_offline(tmp_path):
    # In a process of its own: the library reads HF_HUB_OFFLINE when it is imported.
    code = (
        "from gpuprof.workload import Options, build\n"
        "try: build('owner/name', Options())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert done.stdout.startswith("GpuprofError owner/name is no preset, no local directory, not in the Hugging")
    assert done.stdout.count("\n") == 1


def test_options_that_do_not_fit_the_model():
    assert "--image-crops means nothing for GPT2LMHeadModel" in refusal("gpt2", weightless=True, image_crops=2)
    assert "--seq-len means nothing for ViT" in refusal("vit-base-16", weightless=True, seq_len=8)
    assert "--prompt-len means nothing for" in refusal("gpt2", weightless=True, prompt_len=8)
    for name in ("bert-base", "resnet-50", "siglip-so400m-384"):
        assert "cannot --mode generate" in refusal(name, weightless=True, mode="generate")


def test_lengths_beyond_the_learned_positions(tiny):
    assert "beyond the 1024 positions" in refusal("gpt2", weightless=True, seq_len=1025)
    message = refusal("gpt2", weightless=True, mode="generate", prompt_len=1024, new_tokens=2)
    assert message.startswith("--prompt-len 1024 --new-tokens 2 goes beyond the 1024 positions")
    # Rotary positions have no table to run out of.
    build(tiny("llama-3.1-8b", max_position_embeddings=64), Options(seq_len=65), weightless=True)
    # The default stays within.
    assert build(tiny("gpt2"), Options(), weightless=True).description["seq_len"] == 64
