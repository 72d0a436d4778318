"""The console command `cfer`: which commands there are, and where.

The module of a command is imported when it is asked for, and imports PyTorch or Ray when its
options have been read: help comes at once. Some commands are made of what is above `cfer`, so all
of them are imported by name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cfer.errors import InputError, exit_with_message
from cfer.options import parse, parse_command


class Command(NamedTuple):
    """A command and where it is.

    Attributes:
        help: what it does, in a line.
        module: where it is.
        options: what its options are read from: a function there, which is called with them, or a
            dataclass.
        run: a function there that reads the command line itself; empty: `options` does all.
    """

    help: str
    module: str
    options: str = ""
    run: str = ""


COMMANDS = {
    "demo": Command("the whole path on drawn faces, in minutes", "pipeline.demo", "demo"),
    "draw": Command("the built-in people, as videos", "pipeline.datasets.synthetic", "draw"),
    "puppets": Command(
        "photographs with landmarks, moved, as videos", "pipeline.datasets.puppets", "puppets"
    ),
    "extract": Command(
        "videos → shards of encoded faces", "pipeline.extract", "ExtractOptions", "main"
    ),
    "verify": Command("every hash and count of shards", "cfer.data.command", "verify"),
    "train": Command("one run, or a protocol", "cfer.train.command", "TrainOptions", "main"),
    "evaluate": Command("what runs are worth", "cfer.evaluate.command", "evaluate"),
    "report": Command("a page about an experiment", "cfer.evaluate.command", "report"),
    "benchmark": Command(
        "from a data set to the table of methods", "pipeline.benchmark", "BenchmarkOptions", "main"
    ),
    "predict": Command("the expressions of videos", "cfer.predict.command", "predict"),
    "look": Command("what the method sees of a video", "cfer.predict.command", "look"),
    "encode": Command("a face as a fixed-GOP bitstream", "cfer.predict.command", "encode"),
    "residuals": Command(
        "what a video transmits, and proof of it", "cfer.predict.command", "residuals"
    ),
    "models": Command("list, show, export, import", "cfer.predict.command", run="models"),
    "serve": Command("predictions over HTTP", "cfer.predict.command", "serve"),
    "bench": Command("speed and robustness, from a checkout", "benchmarks.__main__", run="main"),
}


def main() -> None:
    exit_with_message(lambda: run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Do what a command line says → exit status. Raises InputError."""
    if not argv or argv[0] not in COMMANDS:
        # Help, completion (`cfer --tyro-print-completion bash`), or a mistake.
        completes = any(word.startswith("--tyro-") for word in argv)
        every = {
            name: _options_of(command) if completes and command.options else _named(command)
            for name, command in COMMANDS.items()
        }
        return parse_command(every, "cfer", ABOUT, argv)
    name, command = argv[0], COMMANDS[argv[0]]
    if command.run:
        status: int = getattr(_module_of(command), command.run)(argv[1:])
        return status
    return parse(_options_of(command), f"cfer {name}", argv[1:])


ABOUT = (
    "Facial expressions from the residuals of a compressed video. `cfer COMMAND --help` says more."
)


def _module_of(command: Command) -> Any:
    if command.module.startswith("benchmarks"):
        # Beside the package in a checkout, and not installed.
        for root in (Path(__file__).parent.parent, Path.cwd()):
            if (root / "benchmarks" / "robustness.py").is_file():
                sys.path.insert(0, str(root))
                break
        else:
            raise InputError("cfer bench: it is not installed with cfer; run it in a checkout")
    return importlib.import_module(command.module)


def _options_of(command: Command) -> Callable[..., int]:
    found: Callable[..., int] = getattr(_module_of(command), command.options)
    return found


def _named(command: Command) -> Callable[..., int]:
    def nothing() -> int:
        return 0

    nothing.__doc__ = command.help
    return nothing


if __name__ == "__main__":
    main()
