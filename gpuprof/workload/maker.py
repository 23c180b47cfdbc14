"""Seeded tensors for one model, of the sizes that the user asked for."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from gpuprof.errors import GpuprofError
from gpuprof.workload.configuration import ask, parts
from gpuprof.workload.options import SIZES, Options, flag

# Text beside an image where no length is given: a question, as a user would ask it.
QUESTION_LENGTH = 64
IMAGES = ("pixel_values", "flattened_patches", "image_pixel_values", "image_patches")
SOUNDS = ("input_values", "input_features", "audio_input_features")
_SPOKEN = {"audio_latents", "audio_labels"}
VIDEOS = ("pixel_values_videos",)
# What a model with a tokenizer reads: experts and caches see the statistics of a language and not of noise.
TEXT = (
    "The lighthouse keeper counted the ships as they came home, and wrote each name in a book nobody read. ",
    "In winter the harbour froze, so he repaired clocks instead; most of them had stopped for want of oil. ",
    "One evening a captain asked him how far the light could be seen, and how bright it really was. ",
    "He answered that the maker promised twenty miles, but that he himself had measured only seventeen. ",
    "A promise is what the lamp could do on a perfect night, he said, a measurement is what it did in ours. ",
    "They walked up the stairs together, looked out over the dark water, and began to count the seconds. ",
)


@dataclass
class Inputs:
    """The inputs of one model call.

    Attributes:
        kwargs: The arguments by name.
        sizes: The size options as resolved; None for those that mean nothing here.
        tokens_per_step: Positions of text that one step processes; None without text.
    """

    kwargs: dict[str, Any]
    sizes: dict[str, int | None]
    tokens_per_step: int | None = None


@dataclass
class Maker:
    """Makes tensors for one model, and knows what the user asked for; of the batches of a job that of this number."""

    model: Any
    options: Options
    defaults: dict[str, int]
    tokenizer: Any
    device: torch.device
    weightless: bool
    number: int = 0
    random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        if type(self.model).forward is torch.nn.Module.forward:
            raise GpuprofError(
                f"{type(self.model).__name__} has no forward, only parts that have: name one of them as the "
                "architecture, or write a function that returns the model and a step, and give it as file.py:function"
            )
        # On the CPU, so that every device gets the same inputs.
        self.random = torch.Generator().manual_seed(self.options.seed + self.number)
        self.config = self.model.config
        self.text_config = ask(self.config, "text_config") or self.config
        self.architecture = type(self.model).__name__
        self.takes = frozenset(inspect.signature(self.model.forward).parameters)
        main = self.model.main_input_name
        self.main = main if isinstance(main, str) else main[0]
        if self.main == "inputs" and "input_ids" in self.takes:
            self.main = "input_ids"  # another word for it
        blind = ("vision_config", IMAGES + VIDEOS), ("audio_config", SOUNDS)
        missing = {name for part, names in blind if ask(self.config, part, self) is None for name in names}
        self.media = _media(self.takes - missing, self.main)
        # What it says is no text, though it reads text.
        self.speaks = ask(self.config, "num_codebooks") is not None or not _SPOKEN.isdisjoint(self.takes)
        self.training = self.options.mode == "train"
        self.generating = self.options.mode == "generate"

    def size(self, name: str, fallback: int) -> int:
        """A size option: the user's, else the preset's, else the fallback."""
        return getattr(self.options, name) or self.defaults.get(name, fallback)

    def accept(self, kind: str, *names: str) -> None:
        """Refuses the size options that mean nothing for this kind of model."""
        for name in SIZES:
            if getattr(self.options, name) is not None and name not in names:
                raise GpuprofError(
                    f"{flag(name)} means nothing for {self.architecture}, {kind}, in --mode {self.options.mode}"
                )

    def unknown(self, why: str = "") -> GpuprofError:
        """The refusal of a model whose inputs nobody knows."""
        return GpuprofError(
            f"gpuprof does not know the inputs of {self.architecture} (model type {self.config.model_type!r}"
            f"{'; ' if why else ''}{why}): write a function that returns the model and its inputs, and give it as "
            "file.py:function"
        )

    def floats(self, *shape: int, known: bool = False) -> torch.Tensor:
        """Normally distributed values in the model's dtype; without weights they are none, unless they are `known`."""
        if self.weightless and not known:
            return torch.empty(shape, dtype=self.model.dtype, device="meta")
        device = "cpu" if self.weightless else self.device
        return torch.randn(shape, generator=self.random).to(device, self.model.dtype)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Integers in [0, high)."""
        return self.place(torch.randint(high, shape, generator=self.random))

    def place(self, integers: torch.Tensor) -> torch.Tensor:
        """Integer inputs keep their values even without weights: models look at them to decide what to do."""
        return integers if self.weightless else integers.to(self.device)

    def text(self, batch: int, length: int) -> torch.Tensor:
        """Token ids, shape (batch, length): real text if there is a tokenizer, else random ordinary ids."""
        if self.tokenizer is None:
            sizes = ("vocab_size", "num_hash_buckets")
            known = [ask(part, name) for name in sizes for part in (self.text_config, *parts(self.config))]
            vocabulary = next((size for size in known if isinstance(size, int)), None)
            if vocabulary is None:
                raise self.unknown()
            ordinary = torch.ones(vocabulary, dtype=torch.bool)
            ordinary[[token for token in _special_tokens(self.config) if token < len(ordinary)]] = False
            allowed = ordinary.nonzero().flatten()
            ids = allowed[torch.randint(len(allowed), (batch, length), generator=self.random)]
        else:
            first = self.number * batch
            ids = torch.tensor([_tokenize(self.tokenizer, start, length) for start in range(first, first + batch)])
            if int(ids.max()) >= self.text_config.vocab_size:
                raise GpuprofError(
                    "the tokenizer is not the model's: it gives tokens beyond the vocabulary of "
                    f"{self.text_config.vocab_size}"
                )
        return self.place(ids)

    def decoder_start(self, batch: int) -> torch.Tensor:
        """The token a decoder starts with, shape (batch, 1)."""
        names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        known = [token for name in names if isinstance(token := ask(self.config, name), int)]
        return self.place(torch.full((batch, 1), known[0] if known else 0, dtype=torch.long))

    def lengths(self, fallback: int = 512, prompt: int = 512, *, shortest: int = 1) -> dict[str, int | None]:
        """The lengths of a text: `seq_len`, or in generate mode `prompt_len` and `new_tokens`."""
        limit, learned = self.position_limit()
        sizes: dict[str, int | None] = dict.fromkeys(SIZES)
        if self.generating:
            new_tokens = self.size("new_tokens", 16)
            longest = max(shortest, limit - new_tokens + 1)
            prompt_len = self.size("prompt_len", min(prompt, longest))
            sizes |= {"prompt_len": prompt_len, "new_tokens": new_tokens}
            total, asked = prompt_len + new_tokens - 1, f"--prompt-len {prompt_len} --new-tokens {new_tokens}"
        else:
            total = self.size("seq_len", min(fallback, limit))
            sizes["seq_len"], asked = total, f"--seq-len {total}"
        if learned and total > limit:
            raise GpuprofError(f"{asked} goes beyond the {limit} positions that {self.architecture} knows")
        return sizes

    def position_limit(self) -> tuple[int, bool]:
        """The most positions of text a model is made for, and whether it can do no more: they are learned."""
        names = ("max_target_positions", "n_positions", "max_position_embeddings", "max_decoder_position_embeddings")
        limits = [limit for name in names if isinstance(limit := ask(self.text_config, name), int) and limit > 0]
        if not limits:
            return 10**9, False
        # Some tables of positions have two rows more than positions (OPT, BART).
        tables = [
            module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Embedding)
            and ("position" in name or name.endswith("wpe"))
            and 0 <= module.num_embeddings - limits[0] <= 2
        ]
        # Others give their first rows to padding (RoBERTa).
        padding = [t.padding_idx + 1 for t in tables if t.padding_idx is not None and t.num_embeddings == limits[0]]
        return limits[0] - max(padding, default=0), bool(tables)


def _media(takes: frozenset[str], main: str) -> list[str]:
    """Arguments that bring what is seen and heard, one of each kind: a video only where there is no image."""
    kinds = [sorted((n for n in names if n in takes), key=lambda n: n != main) for names in (IMAGES, SOUNDS)]
    found = [names[0] for names in kinds if names] or [name for name in VIDEOS if name in takes]
    return sorted(found, key=lambda name: name != main)


def _special_tokens(config: Any) -> set[int]:
    """Every token that a configuration gives a meaning of its own, such as the end of the text."""
    special: set[int] = set()
    for part in parts(config):
        for name, value in vars(part).items():
            if name.endswith(("_token_id", "_token_ids", "_token_index")):
                values = value if isinstance(value, list) else [value]
                special.update(token for token in values if isinstance(token, int) and token >= 0)
    return special


def _tokenize(tokenizer: Any, start: int, length: int) -> list[int]:
    """The first `length` tokens of the text, each sample starting with another sentence."""
    first = start % len(TEXT)
    text = "".join(TEXT[first:] + TEXT[:first])
    copies = math.ceil(length / len(text.split()))
    ids = tokenizer(text * copies, truncation=True, max_length=length)["input_ids"]
    # A word is a token at least, so this is long enough; if a tokenizer joins words, begin again.
    return (ids * math.ceil(length / len(ids)))[:length]
