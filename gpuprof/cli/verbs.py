"""What verbs there are and what the help says of each. Only the file of the one that is asked for is imported."""

from __future__ import annotations

import textwrap
from importlib import import_module
from keyword import iskeyword
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


class Verb(NamedTuple):
    """What the help says of a verb before its file is imported, and below its options."""

    line: str
    """First line of what its function says of itself."""
    examples: tuple[str, str]


VERBS = {
    "profile": Verb(
        "Run a model's real forward and backward, and report time, FLOPs and MFU per module.",
        ("gpuprof profile smollm2-135m --batch-size 2 --seq-len 256 -o run.json",
         "gpuprof profile model.py:make --mode forward --device cuda --launches 5 -o run.json.gz"),
    ),
    "sweep": Verb(
        "Profile every combination of the given values, each in a process of its own, into one table and a chart.",
        ("gpuprof sweep smollm2-135m --seq-len 128,256,512 --attention eager,sdpa -o points",
         "gpuprof sweep gpt2,qwen2-0.5b --batch-size 1,2,4 -o points --dry-run"),
    ),
    "count": Verb(
        "Count a model's FLOPs, forward and backward, per module, without weights and without running it.",
        ("gpuprof count llama-3-8b --seq-len 4096",
         "gpuprof count qwen2-0.5b --mode generate --prompt-len 512 --new-tokens 64 --convention full"),
    ),
    "show": Verb(
        "Show a saved run as a tree or a table, for people or for machines.",
        ("gpuprof show run.json --depth 2",
         "gpuprof show run.json --by kernel --top 10 --format csv -o kernels.csv"),
    ),
    "validate": Verb(
        "Say of every figure of a report whether it is right, and why not. Status 1 if one is unexplained.",
        ("gpuprof validate report.txt smollm2-135m --batch-size 1 --seq-len 128",
         "gpuprof validate train.log --run run.json --format markdown"),
    ),
    "backward": Verb(
        "Hold 'the backward costs twice the forward' against a saved run, per module, and say why not.",
        ("gpuprof backward run.json",
         "gpuprof backward run.json --depth 2 --chart backward.png"),
    ),
    "report": Verb(
        "Make one self-contained page of a saved run: budget, modules, roofline, memory; of two, what changed.",
        ("gpuprof report run.json -o run.html",
         "gpuprof report base.json head.json -o changed.html"),
    ),
    "budget": Verb(
        "Say where the time of a saved run's step, or of a phase of it, went, in parts that add up to it.",
        ("gpuprof budget run.json",
         "gpuprof budget run.json --phase decode --chart decode.png"),
    ),
    "roofline": Verb(
        "Hold a saved run's rates against what memory and processor allow at their arithmetic intensity.",
        ("gpuprof roofline run.json",
         "gpuprof roofline run.json --top 10 -o roofline.png"),
    ),
    "memory": Verb(
        "Say what took the memory of a saved run's step, by phase and module, and what another size would take.",
        ("gpuprof memory run.json --depth 2",
         "gpuprof memory run.json --fit batch --memory 24"),
    ),
    "compare": Verb(
        "Set two runs beside one another, also of two devices, and say whose kernels moved: new, gone, slower, faster.",
        ("gpuprof compare base.json head.json",
         "gpuprof compare base.json head.json --by kernel --top 20 --format markdown"),
    ),
    "check": Verb(
        "Hold a run against earlier ones. Status 1 if it regressed, 3 if that cannot be told, 4 if it drifted.",
        ("gpuprof check head.json --against base.json",
         "gpuprof check head.json --store sqlite:///history.db --margin 3% --format junit -o check.xml"),
    ),
    "watch": Verb(
        "Follow a training: MFU, tokens/s and step time at each read of its meter, and what moved. Ctrl-C ends it.",
        ("gpuprof watch runs/today",
         "gpuprof watch runs/today --once --min-change 5%"),
    ),
    "ab": Verb(
        "Run two commands in turns, and say which is slower. Status 1 if it is the second, 3 if that cannot be told.",
        ("gpuprof ab 'gpuprof profile gpt2 --attention eager' 'gpuprof profile gpt2 --attention sdpa'",
         "gpuprof ab 'python before.py {out}' 'python after.py {out}' --launches 7 --keep runs"),
    ),
    "presets": Verb(
        "List the models that come by name, with random weights, and their parameter counts.",
        ("gpuprof presets", "gpuprof presets | grep llama"),
    ),
    "devices": Verb(
        "List the peaks gpuprof knows: dense TFLOP/s per torch device, with their sources.",
        ("gpuprof devices", "gpuprof devices h100 --format json"),
    ),
    "ceilings": Verb(
        "Measure the best matmul per dtype and the best copy of this very device.",
        ("gpuprof ceilings --dtype bf16,fp32",
         "gpuprof ceilings --shapes run.json --seconds 10 -o ceilings.json"),
    ),
    "doctor": Verb(
        "Say what this machine can measure, and what to do about what it cannot.",
        ("gpuprof doctor", "gpuprof doctor --format json"),
    ),
    "import": Verb(
        "Make a run of a recorded trace of any job: kernels, operators, modules, phases, FLOPs and MFU, without torch.",
        ("gpuprof import trace.json.gz -o run.json",
         "gpuprof import rank0.json rank1.json --step all --device-name 'NVIDIA H100 80GB HBM3' -o run.json"),
    ),
    "history": Verb(
        "The runs of a store: list, show and draw them, move them in and out, prune them.",
        ("gpuprof history import runs --store sqlite:///history.db",
         "gpuprof history list --store sqlite:///history.db --since 2026-01-01"),
    ),
    "completion": Verb(
        "Print the script that completes gpuprof's verbs, options and choices in a shell.",
        ("gpuprof completion bash >> ~/.bashrc",
         "gpuprof completion fish > ~/.config/fish/completions/gpuprof.fish"),
    ),
}  # fmt: skip


def _write_examples(self: Any, ctx: Any, formatter: Any) -> None:
    """Write them as they are: a command that is wrapped cannot be copied."""
    if self.epilog:
        with formatter.section("Examples"):
            for line in self.epilog.splitlines():
                formatter.write(f"  {line}\n")


class VerbCommand(TyperCommand):
    """A verb: its help has a section for each panel of its options, without rich, which takes longer than all else."""

    format_epilog = _write_examples

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options of no panel, and those of each."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or usual
            if record := parameter.get_help_record(ctx):
                sections.setdefault(panel, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl([(_folded(name, formatter), text) for name, text in records])


def _folded(option: str, formatter: Any) -> str:
    """An option with its choices, on further lines where they do not fit one."""
    room = formatter.width - formatter.current_indent
    lines = textwrap.wrap(option.replace("|", "| "), room, subsequent_indent="    ", break_on_hyphens=False)
    return f"\n{'':{formatter.current_indent}}".join(lines).replace("| ", "|")


class VerbGroup(TyperGroup):
    """A verb of several commands."""

    format_epilog = _write_examples

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write what each does, in full."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, str(command.help)) for name, command in self.commands.items()])


class Verbs(TyperGroup):
    """All verbs, each imported when it is asked for."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given | {"commands": dict.fromkeys(VERBS)})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name in VERBS and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands.get(cmd_name)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``, which is False where it is not given: to make a bool of None Typer loads pydantic."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write what each does, none imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.line) for name, verb in VERBS.items()])


def _load(name: str) -> Any:
    """Import a verb, which is a function or commands of its own, and make a command of it."""
    home = f"{name}_" if iskeyword(name) else name
    verb = getattr(import_module(f"gpuprof.cli.{home}"), home)
    if not isinstance(verb, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name, cls=VerbCommand)(verb)
        verb = alone
    command = get_command(verb)
    command.epilog = "\n".join(VERBS[name].examples)
    return command
