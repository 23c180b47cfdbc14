"""From a preset, a directory or a Hub id to a transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from gpuprof.errors import GpuprofError, first_line, is_out_of_memory
from gpuprof.process import let_others_in
from gpuprof.workload.configuration import ask
from gpuprof.workload.options import Options, preferred_dtype, resolve_dtype
from gpuprof.workload.presets import load_preset
from gpuprof.workload.weightless import Answers, Weightless, drop_values

WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer.*", "vocab*", "spiece.model", "sentencepiece*", "*.spm", "tekken.json")


@dataclass
class Loaded:
    """A model and what is known of its making.

    Attributes:
        model: The model, on its device, in its dtype.
        name: What to call it.
        source: `preset`, `directory` or `hub`.
        weights: `random`, `loaded` or `none`.
        tokenizer: The model's own, where there is one.
        defaults: Sizes a preset proposes.
        notes: What the user should know.
    """

    model: Any
    name: str
    source: str
    weights: str
    tokenizer: Any = None
    defaults: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def from_preset(name: str, options: Options, device: torch.device, place: torch.device) -> Loaded:
    """Builds a preset with random weights, or with none on the `meta` device.

    Args:
        name: Of the preset.
        options: The user's.
        device: Where the model works, which decides its dtype.
        place: Where it is built.

    Raises:
        GpuprofError: There is no such preset, or the options do not fit the model.
    """
    preset = load_preset(name)
    fields = dict(preset["config"])
    with quiet():
        config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        config.architectures = [preset["architecture"]]
        model = _construct(_model_class(config, name, options), config, options, place, preferred_dtype(device))
    return Loaded(model, name, "preset", _unloaded(device), defaults=preset.get("defaults", {}))


def from_pretrained(location: str, options: Options, device: torch.device, place: torch.device) -> Loaded:
    """Builds what a local directory or a Hub id holds: its weights where there are any, else random ones.

    Args:
        location: A directory with a `config.json`, or `owner/name` on the Hub or in its local cache.
        options: The user's.
        device: Where the model works, which decides its dtype; for `meta` no weights are read.
        place: Where it is built.

    Raises:
        GpuprofError: There is no configuration, it names no model class, or the weights do not load.
    """
    folder = Path(location).expanduser() if Path(location).expanduser().is_dir() else None
    source = "directory" if folder is not None else "hub"
    found = str(folder or location)
    if options.trust_remote_code:
        let_others_in()
    with quiet():
        config = _load_config(found, source, options)
        model_class = _model_class(config, location, options)
        # On a CPU the half precisions are slow and often missing, so there a checkpoint is widened.
        default = torch.float32 if device.type == "cpu" else _own_dtype(config)
        has_weights = folder is None or any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES)
        notes: list[str] = []
        if device.type == "meta" or not has_weights:
            model, weights = _construct(model_class, config, options, place, default), _unloaded(device)
            if weights == "random":
                notes.append(f"no weights in {location}: they are random")
        else:
            model, missing = _load_weights(model_class, config, found, options, place, default)
            weights = "loaded"
            if missing:
                notes.append(f"{len(missing)} tensors are not among the weights, so random: {', '.join(missing[:3])}")
        tokenizer = None if device.type == "meta" else _load_tokenizer(found, options)
    name = folder.resolve().name if folder is not None else location
    return Loaded(model, name, source, weights, tokenizer, notes=notes)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' own log lines and progress bars, and gives them back."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _construct(model_class: Any, config: Any, options: Options, device: torch.device, default: torch.dtype) -> Any:
    """A model with random weights, made in its dtype on its device: nothing is copied or cast afterwards."""
    attention = {"attn_implementation": options.attention} if options.attention else {}
    dtype = resolve_dtype(options.dtype) or default
    torch.manual_seed(options.seed)
    try:
        with ExitStack() as modes:
            for mode in (Answers(), Weightless()) if device.type == "meta" else ():
                modes.enter_context(mode)  # so that whole numbers it keeps have values
            modes.enter_context(device)
            model = model_class._from_config(config, dtype=dtype, **attention)
    except Exception as error:  # whatever the model's own code makes of a configuration that it does not expect
        _check_room(error, f"{model_class.__name__} is built", device, dtype)
        asked = f" with --attention {options.attention}" if options.attention else ""
        raise GpuprofError(f"{model_class.__name__} cannot be built{asked}: {first_line(error)}") from error
    if device.type == "meta":
        drop_values(model)  # and other values it has none of, also those it makes without asking for a device
    return model


def _load_weights(
    model_class: Any, config: Any, found: str, options: Options, device: torch.device, default: torch.dtype
) -> tuple[Any, list[str]]:
    """A model with the weights that were `found`, and the names of those that are not there."""
    attention = {"attn_implementation": options.attention} if options.attention else {}
    dtype = resolve_dtype(options.dtype) or default
    # Weights that are missing are random, and those are to be the same each time.
    torch.manual_seed(options.seed)
    try:
        model, info = model_class.from_pretrained(
            found,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=options.trust_remote_code,
            **attention,
        )
        model = model.to(device)
    except Exception as error:  # whatever a broken file, a foreign format or a full device raises
        _check_room(error, f"the weights of {found} are loaded", device, dtype)
        raise GpuprofError(f"the weights of {found} do not load: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if len(missing) >= len(list(model.parameters())):
        raise GpuprofError(f"the weights of {found} do not load: none of them belongs to {model_class.__name__}")
    return model, missing


def _check_room(error: Exception, doing: str, device: torch.device, dtype: torch.dtype) -> None:
    """Says so where an error means that the device is too small.

    Raises:
        GpuprofError: It does.
    """
    if is_out_of_memory(error):
        lower = "give --dtype bfloat16, or take" if dtype.itemsize > 2 else "take"
        raise GpuprofError(f"out of memory on {device} while {doing}: {lower} a smaller model") from error


def _load_config(place: str, source: str, options: Options) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(place, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # connection, JSON and validation errors come in many classes
        if "trust_remote_code" in str(error):
            raise GpuprofError(f"{place} runs code of its own: read it, then add --trust-remote-code") from error
        if source == "directory":
            raise GpuprofError(f"config.json in {place} is not usable: {first_line(error)}") from error
        raise GpuprofError(
            f"{place} is no preset, no local directory, not in the Hugging Face cache, and the Hub does not "
            f"give it: {first_line(error)}"
        ) from error


def _load_tokenizer(place: str, options: Options) -> Any:
    """The tokenizer beside a model, or None: many models have none, and random ids do as well."""
    folder = Path(place)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            place, trust_remote_code=options.trust_remote_code, local_files_only=folder.is_dir()
        )
        # Where files are missing the library makes an empty one, that knows special tokens at most.
        words = set(tokenizer("some words")["input_ids"]) - set(tokenizer.all_special_ids)
    except Exception:  # a missing, partial or foreign tokenizer; the step runs without it
        return None
    return tokenizer if words else None


def _model_class(config: Any, location: str, options: Options) -> Any:
    """The class that a configuration names, from transformers or, if trusted, from the model's own code."""
    names = ask(config, "architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise GpuprofError(
            f'config.json in {location} names no architecture: add "architectures": ["SomeModelForSomeTask"]'
        )
    if (model_class := getattr(transformers, names[0], None)) is not None:
        return model_class
    own_code = getattr(config, "auto_map", None) or {}
    for reference in own_code.values():
        if isinstance(reference, str) and reference.endswith(f".{names[0]}"):
            if not options.trust_remote_code:
                raise GpuprofError(f"{location} runs code of its own: read it, then add --trust-remote-code")
            return get_class_from_dynamic_module(reference, location)
    raise GpuprofError(
        f"config.json in {location} names {names[0]}, which transformers {transformers.__version__} lacks"
    )


def _own_dtype(config: Any) -> torch.dtype:
    """The dtype a configuration says its weights have; float32 where it says nothing, as in the library."""
    for part in (config, getattr(config, "text_config", None)):
        dtype = getattr(part, "dtype", None)
        if dtype is not None:
            return getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return torch.float32


def _unloaded(device: torch.device) -> str:
    return "none" if device.type == "meta" else "random"
