"""Our own commands, as far as they understand their command line."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cfer.cli import COMMANDS, run
from cfer.options import parse

# What is typed in place of `cfer NAME`.
ALSO = {"cfer.train": "train", "pipeline/extract.py": "extract"}


def as_cfer(words: Sequence[str]) -> list[str]:
    """`cfer NAME …`, `python -m MODULE …` or `python FILE …` → NAME …"""
    program, *rest = words
    if program != "python":
        return rest
    name, *rest = rest[1:] if rest[0] == "-m" else rest
    return [ALSO[name], *rest]


def check_options(words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Read NAME and its options, and do nothing. SystemExit or InputError where they are wrong."""
    command = COMMANDS[words[0]]
    module = importlib.import_module(command.module)
    if hasattr(module, "options_of"):
        module.options_of(words[1:])
        return
    options = getattr(module, command.options, None)
    if isinstance(options, type):
        parse(options, words[0], words[1:])
        return
    with patch.context() as patched:
        for name, function in vars(module).items():
            is_own = getattr(function, "__module__", "") == module.__name__
            if is_own and not isinstance(function, type) and name != command.run:
                patched.setattr(module, name, _nothing(function))
        run(words)


def _nothing(function: Callable[..., Any]) -> Callable[..., int]:
    @functools.wraps(function)
    def nothing(*_: object, **__: object) -> int:
        return 0

    return nothing
