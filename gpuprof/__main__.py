"""``python -m gpuprof``, and the command ``gpuprof``."""

import sys
from typing import Any, NoReturn

from gpuprof.process import run


def main() -> NoReturn:
    """Be the process of the command line. Within another `gpuprof.cli.main` is what runs it."""
    run(_command_line)


def _command_line() -> Any:
    try:
        from gpuprof.cli import main
    except KeyboardInterrupt:  # whoever presses Ctrl-C at once
        print("gpuprof: interrupted", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    main()
