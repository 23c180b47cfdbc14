"""How many of the architectures that transformers knows gpuprof counts from a folder: all of them, shrunken, tried.

    python scripts/bench_architectures.py --markdown docs/models.md
    python scripts/bench_architectures.py --only gemma3,sam

Each architecture is written as a folder that holds a `config.json` alone, and is counted without weights, forward and
train, with the inputs that gpuprof makes. Then its forward is run for real, on a CPU with random weights and one
sample, and has to do as many FLOPs as were counted without. Every architecture is tried in a process of its own, with
a time limit.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import io
import itertools
import json
import multiprocessing
import re
import shlex
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, model_type_to_module_name

import gpuprof
import gpuprof.profiler
from gpuprof.errors import GpuprofError
from gpuprof.workload import facts, huggingface, inputs  # noqa: F401  (once, before the children are forked)

# Of an architecture's classes the one that is tried: the first of these that it has, else its bare model.
TASKS = (
    "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "MASKED_LM", "CAUSAL_LM",
    "IMAGE_CLASSIFICATION", "CTC", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION",
    "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "DEPTH_ESTIMATION", "MASK_GENERATION",
    "TIME_SERIES_PREDICTION", "TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM", "SEQUENCE_CLASSIFICATION",
    "QUESTION_ANSWERING",
)  # fmt: skip
# What no input makes run, by the reason: another model's states are its inputs, or the library's own code is at odds
# with the default configuration in a way that no few fields mend.
ALONE: dict[str, str] = {
    "gemma4_unified_assistant": "continues another model's states",
    "muse_glimmer_assistant": "continues another model's states",
    "glm4v_moe": "its default configuration contradicts itself",
    "glm_image": "its default configuration contradicts itself",
    "granitemoehybrid": "its default configuration has no attention, which its forward asks for",
    "llama4": "its forward raises for any image in transformers 5.24",
    "pp_doclayout_v2": "its default configuration lacks what its forward asks for",
    "pp_ocrv6_small_det": "its default configuration contradicts itself",
    "prophetnet": "its default configuration contradicts itself",
    "sam3_tracker_video": "takes a session, no tensors",
    "step3p7": "its default configuration lacks what its forward asks for",
    "t5gemma2": "its default configuration contradicts itself",
    "uvdoc": "its default configuration contradicts itself",
}
_GLM_ROTARY = {
    "rope_type": "default", "rope_theta": 10_000, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12],
}  # fmt: skip
_SERIES = {"prediction_length": 24, "num_time_features": 2}
_SIGLIP_896 = {"image_size": 896, "patch_size": 14}
_GRANITE_PROJECTOR = {"model_type": "blip_2_qformer", "encoder_hidden_size": 1024}
_LLAMA4_VISION = {
    "hidden_size": 1408,
    "image_size": 336,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 4096,
}
# What defaults lack or get wrong, so that the model does not run as they are: fields of the published configurations.
FIELDS: dict[str, dict[str, Any]] = {
    "aria": {"vision_config": {"image_size": 980, "patch_size": 14}},
    "autoformer": _SERIES,
    "aya_vision": {"vision_config": {"num_attention_heads": 16, "image_size": 364}},
    "blip-2": {"image_token_index": 50_265},
    "colmodernvbert": {"vlm_config": {"model_type": "modernvbert", "vision_config": {"image_size": 512}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma3": {"vision_config": _SIGLIP_896},
    "glm46v": {"text_config": {"rope_parameters": _GLM_ROTARY}},
    "glm4v": {"text_config": {"rope_parameters": _GLM_ROTARY}},
    "glmga": {"text_config": {"rope_parameters": _GLM_ROTARY}},
    "granite_speech": {"projector_config": _GRANITE_PROJECTOR},
    "granite_speech_plus": {"projector_config": _GRANITE_PROJECTOR},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "idefics3": {"vision_config": {"image_size": 364, "patch_size": 14}},
    "informer": _SERIES,
    "instructblip": {"image_token_index": 50_265},
    "instructblipvideo": {"video_token_index": 50_265},
    "janus": {"vision_config": {"projection_dim": 4096}},
    "llama4": {"vision_config": _LLAMA4_VISION},
    "minicpm_ocr": {"image_token_id": 151_655},
    "minicpmv4_6": {"image_token_id": 151_655},
    "minicpmv4_7": {"image_token_id": 151_655},
    "ministral": {"head_dim": 128},
    "modernvbert": {"vision_config": {"image_size": 512, "patch_size": 16}},
    "moonshine": {"pad_token_id": 0},
    "nemotron": {"num_key_value_heads": 8},
    "ovis2": {"hidden_size": 4096},
    "qwen2_vl": {"vision_config": {"hidden_size": 8192}},
    "qwen3_asr": {"audio_config": {"output_dim": 2048}},
    "qwen2_audio": {"ignore_index": -100},
    "reformer": {"axial_pos_shape": (16, 32)},
    "shieldgemma2": {"vision_config": _SIGLIP_896},
    "smolvlm": {"vision_config": {"image_size": 364, "patch_size": 14}},
    "time_series_transformer": _SERIES,
    "ultravbert": {"vision_config": {"image_size": 512, "patch_size": 16}},
    "vitmatte": {
        "hidden_size": 768,
        "backbone_config": {"model_type": "vitdet", "num_channels": 4, "out_features": ["stage12"]},
    },
    "voxtral": {"audio_token_id": 24},
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "xmod": {"default_language": "en_XX"},
}
LAYERS = re.compile(r"(^|_)(n|num)?_?(hidden_|encoder_|decoder_|text_|vision_)?(layers?|depth|blocks)$")
NOT_LAYERS = re.compile(
    r"feature|select|conv|adapter|out_|index|skip|interval|period|every|downsample|kernel|attention"
)
WIDTHS = re.compile(
    r"(^|_)(hidden_size|intermediate_size|d_model|d_ff|ffn_dim|n_embd|n_inner|d_inner|embed_dim|hidden_dim|mlp_dim"
    r"|emb_dim|feedforward_dim|dim_feedforward|out_hidden_size|projection_dim|ff_dim|word_embed_proj_dim)$"
)
TOKEN = re.compile(r"_token(_id|_index)?s?$")
EXPERTS = re.compile(r"num_(local_|routed_)?experts$|^n_routed_experts$|^moe_num_experts$")
CHOSEN = re.compile(r"(experts_per_tok(en)?|moe_top_?k|moe_topk|top_k_experts)$")
GROUPS = re.compile(r"^(n_group|topk_group)$")


def classes() -> dict[str, str]:
    """{model type: class to try} of every model that is no mere part of another one of its module."""
    mappings = [f"MODEL_FOR_{task}_MAPPING_NAMES" for task in TASKS]
    mappings.append("MODEL_MAPPING_NAMES")
    known = {name: vars(modeling_auto)[name] for name in vars(modeling_auto) if name.endswith("_MAPPING_NAMES")}
    order = [known[m] for m in mappings if m in known] + [m for n, m in known.items() if n != "CONFIG_MAPPING_NAMES"]
    configs = {name: CONFIG_MAPPING[name] for name in CONFIG_MAPPING}
    parts = {
        (model_type_to_module_name(name), part)
        for name, config in configs.items()
        for part in (getattr(config, "sub_configs", None) or {}).values()
    }
    chosen = {}
    for name, config in configs.items():
        found = next((mapping[name] for mapping in order if name in mapping), None)
        if found is not None and (model_type_to_module_name(name), config) not in parts:
            chosen[name] = found if isinstance(found, str) else found[0]
    return chosen


def shrink(config: dict[str, Any], divisor: int, vocabulary: int | None) -> dict[str, Any]:
    """A configuration of few layers and experts, its parts included.

    Args:
        config: As `to_dict` gives it.
        divisor: What widths are divided by, where they can be; 0 to leave all as it is.
        vocabulary: Tokens to leave, special ones at its end; None for all.
    """
    small = copy.deepcopy(config)
    if divisor:
        _shrink(small, divisor, vocabulary, {})
    seen, read = small.get("vision_config"), small.get("text_config") or small
    if isinstance(seen, dict) and "out_hidden_size" in seen and "hidden_size" in read:
        seen["out_hidden_size"] = read["hidden_size"]
    return small


def _shrink(part: dict[str, Any], divisor: int, vocabulary: int | None, tokens: dict[int, int]) -> None:
    cut: dict[int, list[int]] = {}  # length of a list with one entry per layer -> indices that stay
    per_layer = {int(layer): given for layer, given in (part.pop("per_layer_config", None) or {}).items()}
    for name, value in list(part.items()):
        if isinstance(value, dict):
            _shrink(value, divisor, vocabulary, tokens)
        elif isinstance(value, bool) or not isinstance(value, int) or not isinstance(name, str):
            continue
        elif LAYERS.search(name) and not NOT_LAYERS.search(name):
            part[name] = min(value, 2)
            kinds = part.get("layer_types") or part.get("layers_block_type")
            stay = _kept(kinds, value) if value > 2 else list(range(value))
            if value > 2:
                cut[value] = stay
            if per_layer and name == "num_hidden_layers":
                part["per_layer_config"] = {i: per_layer[n] for i, n in enumerate(stay) if n in per_layer}
        elif EXPERTS.search(name):
            part[name] = min(value, 8)
        elif CHOSEN.search(name):
            part[name] = min(value, 2)
        elif GROUPS.search(name):
            part[name] = 1
        elif WIDTHS.search(name) and value % (16 * divisor) == 0:
            part[name] = value // divisor
        elif vocabulary and name.endswith("vocab_size") and value > vocabulary:
            part[name] = vocabulary
        elif vocabulary and TOKEN.search(name) and value >= vocabulary:
            part[name] = tokens.setdefault(value, vocabulary - 1 - len(tokens))
    for name, value in part.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, list) and len(value) in cut and value and not name.endswith(("labels", "archs")):
            part[name] = [value[i] for i in cut[len(value)]]
        elif name == "mrope_section" and divisor > 1 and all(size % divisor == 0 for size in value or [1]):
            part[name] = [size // divisor for size in value]
        elif vocabulary and isinstance(value, list) and TOKEN.search(name):
            part[name] = [
                tokens.setdefault(v, vocabulary - 1 - len(tokens)) if isinstance(v, int) and v >= vocabulary else v
                for v in value
            ]


def _kept(kinds: list[str] | None, layers: int) -> list[int]:
    """Two layers, of two kinds where there are two."""
    if isinstance(kinds, list) and len(kinds) == layers:
        other = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), 1)
        return [0, other]
    return [0, 1]


# -- one architecture, in a child


_WORTH_RUNNING = 3_000_000_000
"""FLOPs up to which a forward is run for real, for the sake of time."""


def attempt(model_type: str, architecture: str, send: Any) -> None:
    """Tries one architecture and sends {what: outcome}; an outcome is FLOPs, or why there are none."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result: dict[str, Any] = {}
        for divisor, vocabulary in ((4, 2000), (1, 2000), (1, None), (0, None)):
            result = _attempt(model_type, architecture, divisor, vocabulary)
            result["shrunk"] = f"{divisor}/{vocabulary}"
            if all(isinstance(result.get(what), int) for what in ("forward", "train")):
                break
    send.send(result)


def _attempt(model_type: str, architecture: str, divisor: int, vocabulary: int | None) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = CONFIG_MAPPING[model_type](**FIELDS.get(model_type, {})).to_dict()
            fields = shrink(config, divisor, vocabulary) | {"architectures": [architecture], "model_type": model_type}
            fields.pop("dtype", None)
            (Path(folder) / "config.json").write_text(json.dumps(fields))
            made = transformers.AutoConfig.from_pretrained(folder)
            with torch.device("meta"):
                getattr(transformers, architecture)._from_config(made)
        except Exception as error:
            return {"build": _line(error)}
        for mode in ("forward", "train"):
            result[mode] = _flops(lambda mode=mode: gpuprof.count(folder, mode=mode))
        if isinstance(result["forward"], int) and result["forward"] < 8 * _WORTH_RUNNING:  # 8 samples at most
            one = _flops(lambda: gpuprof.count(folder, mode="forward", batch_size=1))
            if isinstance(one, int) and one < _WORTH_RUNNING:
                real = _flops(
                    lambda: gpuprof.profile(folder, mode="forward", batch_size=1, device="cpu", passes=("count",))
                )
                result["real"] = real if one == real else f"{real} where {one} were counted without weights"
    return result


def _flops(run: Any) -> int | str:
    try:
        ops = run().ops
    except GpuprofError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"CRASH: {_line(error)}"
    return int((ops["flops_full"].fillna(0)).sum())


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {lines[0] if lines else ''} [{Path(frame.filename).name}:{frame.lineno}]"[:300]


# -- the page


def counted(result: dict[str, Any]) -> bool:
    """Whether forward and train were counted, and a real forward, where it was run, did as many FLOPs."""
    return all(isinstance(result.get(what), int) for what in ("forward", "train")) and not isinstance(
        result.get("real"), str
    )


def why_not(model_type: str, result: dict[str, Any]) -> str:
    """Why an architecture does not run by itself, whoever counts it; empty where it does."""
    said = result.get("build", "")
    if "requires the" in said:
        return "needs a library that is not installed here"
    if said:
        return "cannot be built of its default configuration"
    forward = str(result.get("forward"))
    if "has no forward" in forward:
        return "has no forward"
    return ALONE.get(model_type, "")


def tables(results: dict[str, dict[str, Any]]) -> str:
    """The page: how many are counted, those that are not and why, those that do not run by themselves, and the rest."""
    alone = {name: reason for name, result in results.items() if (reason := why_not(name, result))}
    tried = {name: result for name, result in results.items() if name not in alone}
    good = [name for name, result in tried.items() if counted(result)]
    real = [name for name in good if "real" in tried[name]]
    whole = {mode: sum(isinstance(result.get(mode), int) for result in tried.values()) for mode in ("forward", "train")}
    crashed = [name for name, result in tried.items() if "CRASH" in str(result)]
    lines = [
        "# Architectures of transformers, counted from a folder",
        "",
        f"`{shlex.join(['python', 'scripts/bench_architectures.py', '--markdown', 'docs/models.md'])}`, on a CPU, "
        f"{datetime.date.today()}. torch {torch.__version__}, transformers {transformers.__version__}, gpuprof "
        f"{gpuprof.__version__}. This page is written by that command.",
        "",
        f"Of the {len(results)} architectures that this release of transformers has, parts of others not among them, "
        "each is written as a folder with a `config.json` of few layers and no weights, and counted as `gpuprof count "
        "FOLDER` does it, with the inputs that gpuprof makes: forward and train. Then its forward is run for real on "
        "the CPU, with random weights and one sample, where that takes no more than "
        f"{_WORTH_RUNNING / 1e9:g} GFLOPs, and has to do as many FLOPs as were counted without: an image of another "
        "size, or more places in the text than the image has features, raises there.",
        "",
        "| | architectures |",
        "|---|---:|",
        f"| run by themselves | {len(tried)} |",
        f"| forward counted | {whole['forward']} |",
        f"| train counted | {whole['train']} |",
        f"| **both counted, and as a real run where one was made** | **{len(good)} ({len(good) / len(tried):.1%})** |",
        f"| of these, a real run did exactly as many FLOPs | {len(real)} |",
        f"| refused in one line | {len(tried) - len(good) - len(crashed)} |",
        f"| ended in an error of gpuprof | {len(crashed)} |",
        "",
        "## Refused",
        "",
        "| architecture | class | why |",
        "|---|---|---|",
    ]
    for name, result in tried.items():
        if name not in good:
            said = next(str(result[what]) for what in ("forward", "train", "real") if not isinstance(result[what], int))
            said = said.removeprefix("refused: ").split(": write a function that returns")[0].replace("|", "\\|")
            lines.append(f"| {name} | `{result['class']}` | {said} |")
    lines += ["", "## Not run by themselves", "", "| why | architectures |", "|---|---|"]
    for reason, names in itertools.groupby(sorted(alone, key=lambda name: (alone[name], name)), alone.__getitem__):
        lines.append(f"| {reason} | {', '.join(names)} |")
    lines += ["", "## Counted", "", ", ".join(sorted(good)) + "."]
    return "\n".join(lines) + "\n"


def study(chosen: dict[str, str], limit: float, path: Path) -> dict[str, dict[str, Any]]:
    """{model type: outcome} of each, one after the other; those in the file are not tried again."""
    results = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            results |= json.loads(line)
    context = multiprocessing.get_context("fork")
    for model_type in [name for name in chosen if name not in results]:
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=attempt, args=(model_type, chosen[model_type], send))
        child.start()
        send.close()
        silence = f"refused: no answer in {limit:g} s"
        result: dict[str, Any] = {"forward": silence, "train": silence}
        with contextlib.suppress(EOFError):
            if receive.poll(limit):
                result = receive.recv()
        child.kill()
        child.join()
        results[model_type] = {"class": chosen[model_type], **result}
        with path.open("a") as file:
            file.write(json.dumps({model_type: results[model_type]}) + "\n")
    return {name: results[name] for name in chosen}


def main() -> int:
    """Runs the study and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--limit", type=float, default=400, help="seconds for one architecture")
    parser.add_argument("--results", type=Path, default=Path("architectures.jsonl"), help="file to go on from")
    parser.add_argument("--markdown", type=Path, help="page to write the tables to")
    arguments = parser.parse_args()
    chosen = classes()
    if arguments.only:
        chosen = {name: chosen[name] for name in arguments.only.split(",") if name in chosen}
    text = tables(study(chosen, arguments.limit, arguments.results))
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
