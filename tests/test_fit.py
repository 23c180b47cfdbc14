import dataclasses
import json

import pytest
import torch
from workload.conftest import SMALLER

import gpuprof
from gpuprof.analysis.memory import predict
from gpuprof.fit import Sizes, forecast
from gpuprof.passes.simulated import simulate
from gpuprof.workload import Options, build, load_preset
from gpuprof.workload.steps import CACHE_NAMES

TEXT = {"batch_size": 2, "seq_len": 16}
TWICE = {"batch_size": 4, "seq_len": 32}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Writes a preset's architecture with a few thousand parameters; gives the directory."""
    return writer(tmp_path, monkeypatch)


def writer(folder, patch):
    patch.setattr(torch.cuda, "is_available", lambda: False)

    def write(name, **changes):
        preset = load_preset(name)
        config = preset["config"] | SMALLER[name] | changes | {"architectures": [preset["architecture"]]}
        for key, value in SMALLER[name].items():
            if isinstance(value, dict):
                config[key] = preset["config"][key] | value
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return write


def measured(model, passes=("count", "memory"), **options):
    return gpuprof.profile(model, passes=passes, **options)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A small decoder in training on TEXT, measured once."""
    with pytest.MonkeyPatch.context() as patch:
        return measured(writer(tmp_path_factory.mktemp("text"), patch)("smollm2-135m"), **TEXT)


def activations(run):
    rows = run.memory[run.memory["quantity"] == "activations"]
    return dict(zip(rows["module"], rows["bytes"], strict=True))


@pytest.mark.parametrize(
    ("name", "options", "others"),
    [
        ("smollm2-135m", TEXT, TWICE),
        ("smollm2-135m", {**TEXT, "attention": "eager"}, TWICE),
        ("smollm2-135m", {**TEXT, "checkpointing": "reentrant"}, TWICE),
        ("smollm2-135m", {**TEXT, "checkpointing": "non-reentrant"}, TWICE),
        ("smollm2-135m", {**TEXT, "dtype": "bfloat16", "optimizer": "adamw"}, {"batch_size": 1}),
        ("smollm2-135m", {**TEXT, "freeze": ["model.layers.0"]}, TWICE),
        ("mixtral-8x7b", TEXT, {"batch_size": 4}),
        ("gpt2", TEXT, TWICE),
        ("bert-base", TEXT, TWICE),
        ("t5-small", TEXT, TWICE),
        ("vit-base-16", {"batch_size": 2}, {"batch_size": 4}),
        ("resnet-50", {"batch_size": 2}, {"batch_size": 4}),
        ("whisper-small", TEXT, {"batch_size": 4, "seq_len": 20}),
        ("siglip-so400m-384", {"batch_size": 2}, {"batch_size": 4}),
    ],
)
def test_activations_of_another_size_are_those_that_a_real_step_keeps_to_the_byte(tiny, name, options, others):
    model = tiny(name)
    sizes = Sizes(measured(model, **options), model)

    real = activations(measured(model, ["memory"], **options | others))

    assert sizes.miss == 0
    assert simulate(sizes._built(sizes.own | others), sizes._attention).kept == real
    assert sizes.at(**others).activations == sum(real.values()) > 0


def test_the_run_predicts_itself(tiny):
    model = tiny("smollm2-135m")
    run = measured(model, **TEXT, optimizer="adamw")

    own = Sizes(run, model).at()

    assert (own.batch_size, own.seq_len) == (2, 16)
    assert own.prediction == predict(run, {})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("what", ["batch_size", "seq_len"])
def test_the_largest_that_fits_fits_and_the_next_does_not(tiny, what, attention):
    model = tiny("smollm2-135m")
    run = measured(model, **TEXT, attention=attention)
    sizes = Sizes(run, model)
    capacity = sizes.at(**{what: 100}).prediction.total

    fit = forecast(run, what, capacity=capacity, model=model).fit

    assert getattr(fit.largest, what) == 100
    assert fit.largest == sizes.at(**{what: 100})
    assert fit.beyond == sizes.at(**{what: 101})
    assert fit.largest.prediction.total == capacity < fit.beyond.prediction.total
    assert fit.limit == ""


def test_the_other_size_may_be_given(tiny, text_run):
    model = tiny("smollm2-135m")
    capacity = Sizes(text_run, model).at(batch_size=50, seq_len=40).prediction.total

    fit = forecast(text_run, "batch_size", capacity=capacity, seq_len=40, model=model).fit

    assert (fit.largest.batch_size, fit.largest.seq_len) == (50, 40)


def test_positions_that_a_model_has_learned_are_a_limit_too(tiny):
    model = tiny("gpt2")  # 64 positions

    fit = forecast(measured(model, **TEXT), "seq_len", capacity=1 << 40, model=model).fit

    assert fit.largest.seq_len == 64
    assert fit.beyond is None
    assert fit.limit == "--seq-len 65 goes beyond the 64 positions that GPT2LMHeadModel knows"


def test_where_nothing_fits_the_least_is_told(tiny, text_run):
    model = tiny("smollm2-135m")

    fit = forecast(text_run, "batch_size", capacity=1, model=model).fit

    assert fit.largest is None
    assert (fit.beyond.batch_size, fit.beyond.seq_len) == (1, 16)


@pytest.mark.parametrize("mode", ["forward", "generate"])
def test_a_step_without_a_backward_is_predicted_too(tiny, mode):
    model = tiny("smollm2-135m")
    sizes = Sizes(measured(model, mode=mode, batch_size=2), model)

    one, other = sizes.at(), sizes.at(batch_size=2000)

    assert other.activations == 0
    assert one.prediction.fixed == other.prediction.fixed
    assert one.prediction.made < other.prediction.made


def test_a_model_of_ones_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\n"
        "def net(options):\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))\n"
        "    return net, torch.ones(options.batch_size, 8)\n"
    )
    run = measured(f"{file}:net", batch_size=3, device="cpu")

    with pytest.raises(gpuprof.GpuprofError, match="give it with --model"):
        Sizes(run)
    # the input, the hidden layer once for both that keep it: float32
    assert Sizes(run, f"{file}:net").at(batch_size=7).activations == 4 * 7 * (8 + 32)


def test_another_model_is_refused(tiny, text_run):
    model = tiny("smollm2-135m")
    params = text_run.tree["params"].iloc[0]
    tiny("smollm2-135m", vocab_size=512)  # tied: 256 more rows of 64

    with pytest.raises(gpuprof.GpuprofError, match=rf"not the model of this run: {params + 256 * 64:,} parameters"):
        Sizes(text_run, model)


def test_code_of_the_models_own_is_not_run_because_a_file_says_so(tiny, monkeypatch):
    model = tiny("smollm2-135m")
    run = measured(model, **TEXT)
    run.workload["trust_remote_code"] = True
    seen = []
    monkeypatch.setattr("gpuprof.fit.build", lambda *args, **kwargs: seen.append(args[1]) or 1 / 0)

    with pytest.raises(ZeroDivisionError):
        Sizes(run, model)

    assert [dataclasses.asdict(options)["trust_remote_code"] for options in seen] == [False]


def test_what_is_missing_is_said(tiny):
    model = tiny("vit-base-16")
    run = measured(model, batch_size=2)
    run.device["memory_bytes"] = None

    with pytest.raises(gpuprof.GpuprofError, match="no --seq-len: there is nothing to fit"):
        forecast(run, "seq_len", capacity=1 << 30, model=model)
    with pytest.raises(gpuprof.GpuprofError, match="give it with --memory"):
        forecast(run, "batch_size", model=model)
    with pytest.raises(gpuprof.GpuprofError, match="without the memory pass"):
        Sizes(gpuprof.count(model, batch_size=2), model)


def test_a_rank_of_a_job_is_no_whole_model(text_run):
    sharded = dataclasses.replace(text_run, workload=text_run.workload | {"world": 2, "parallel": ["fsdp"]})
    with pytest.raises(gpuprof.GpuprofError, match=r"^the run is of a job of 2 processes, and a prediction is of one"):
        forecast(sharded)


PROMPT = {"mode": "generate", "batch_size": 2, "prompt_len": 6, "new_tokens": 5}


def cache_of(model, **options):
    """Bytes of the tensors that the cache of a real generation holds at its end, each once."""
    workload, caches = build(model, Options(device="cpu", **options)), []
    found = workload.model.register_forward_pre_hook(
        lambda _, args, kwargs: caches.append(next((kwargs[name] for name in CACHE_NAMES if name in kwargs), None)),
        with_kwargs=True,
    )
    workload.step()
    found.remove()
    cache = caches[-1]
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    layers = [layer for part in (parts if all(parts) else [cache]) for layer in part.layers]
    return sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))


@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize("name", ["smollm2-135m", "mixtral-8x7b", "t5-small"])
def test_the_cache_of_another_size_is_that_of_a_real_generation_to_the_byte(tiny, name, tokens):
    model = tiny(name)
    sizes = Sizes(measured(model, **PROMPT), model)
    other = {"batch_size": 3, "prompt_len": 9, "new_tokens": tokens}

    assert sizes.at(**other).cache["decode"] == cache_of(model, **PROMPT | other)


def test_the_cache_by_hand(tiny):
    model = tiny("smollm2-135m")  # two layers, two heads of keys and values, 16 wide

    sized = Sizes(measured(model, **PROMPT), model).at(batch_size=3, prompt_len=9, new_tokens=40)

    # the last token is given back and goes nowhere
    position = 2 * 2 * (2 * 16) * 3 * 4
    assert sized.cache == {"prefill": 9 * position, "decode": (9 + 39) * position}
    assert (sized.batch_size, sized.seq_len, sized.prompt_len, sized.new_tokens) == (3, None, 9, 40)


@pytest.mark.parametrize("name", ["smollm2-135m", "t5-small"])
def test_many_tokens_are_told_by_few(tiny, monkeypatch, name):
    model = tiny(name)
    sizes = Sizes(measured(model, **PROMPT), model)
    told = sizes._step(sizes.own | {"new_tokens": 30})

    real = sizes._simulated(sizes.own | {"new_tokens": 30})

    assert (told.cache, told.phases, list(told.live)) == (real.cache, real.phases, list(real.live))


@pytest.mark.parametrize("what", ["batch_size", "prompt_len", "new_tokens"])
def test_the_largest_generation_that_fits_fits_and_the_next_does_not(tiny, what):
    model = tiny("smollm2-135m")
    sizes = Sizes(measured(model, **PROMPT), model)
    capacity = sizes.at(**{what: 100}).prediction.total

    fit = sizes.largest(what, capacity)

    assert getattr(fit.largest, what) == 100
    assert fit.largest == sizes.at(**{what: 100})
    assert fit.beyond == sizes.at(**{what: 101})
    assert fit.largest.prediction.total == capacity < fit.beyond.prediction.total


def test_positions_that_a_model_has_learned_limit_a_generation_too(tiny):
    model = tiny("gpt2")  # 64 positions
    sizes = Sizes(measured(model, **PROMPT), model)

    fit = sizes.largest("prompt_len", 1 << 40, new_tokens=7)

    assert (fit.largest.prompt_len, fit.beyond) == (58, None)
    assert fit.limit == "--prompt-len 59 --new-tokens 7 goes beyond the 64 positions that GPT2LMHeadModel knows"
    assert sizes.largest("new_tokens", 1 << 40).largest.new_tokens == 59
    with pytest.raises(gpuprof.GpuprofError, match="goes beyond the 64 positions"):
        sizes.at(new_tokens=60)


def test_a_prompt_too_short_for_its_image_is_not_what_fits(tiny):
    model = tiny("llava-onevision-qwen2-7b")
    image = {"mode": "generate", "image_crops": 2, "new_tokens": 2}
    with pytest.raises(gpuprof.GpuprofError, match="the image alone takes 36 positions"):
        build(model, Options(prompt_len=35, device="cpu", **image))
    sizes = Sizes(measured(model, prompt_len=40, **image), model)

    fit = sizes.largest("prompt_len", sizes.at(prompt_len=36).prediction.total - 1)

    assert (fit.largest, fit.beyond.prompt_len) == (None, 36)
    assert fit.beyond == sizes.at(prompt_len=36)


def test_sizes_that_a_step_does_not_have_are_refused(tiny, text_run):
    model = tiny("smollm2-135m")

    with pytest.raises(gpuprof.GpuprofError, match="--seq-len is for --mode train and forward; --mode generate has"):
        Sizes(measured(model, **PROMPT), model).at(seq_len=8)
    with pytest.raises(gpuprof.GpuprofError, match="--new-tokens is for --mode generate, not --mode train"):
        Sizes(text_run, model).at(new_tokens=8)
    with pytest.raises(gpuprof.GpuprofError, match="no --prompt-len: there is nothing to fit"):
        Sizes(text_run, model).largest("prompt_len", 1 << 40)
