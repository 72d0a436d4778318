"""Command lines: typed options and their help, read from functions and dataclasses in one style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from cfer.errors import InputError

T = TypeVar("T")
_STYLE = (
    tyro.conf.DisallowNone,  # what is not given is None; nobody types it
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.OmitArgPrefixes,
)


def check_at_least(least: float, **options: float | None) -> None:
    """Raises InputError for an option that is less, or no number; None: it is not given."""
    for name, value in options.items():
        if value is not None and not value >= least:
            raise InputError(f"--{name.replace('_', '-')} {value}: give {least} or more")


def parse(what: Callable[..., T], prog: str, argv: Sequence[str] | None, default: Any = None) -> T:
    """Read a command line as a dataclass says, or call a function with what it gives.

    Args:
        what: the comments on a dataclass's fields, or the `Args:` of a function, are the help.
        prog: what the help calls the command.
        argv: its words; None: those of this process.
        default: an instance of the dataclass whose values are the defaults.
    """
    defaults = {} if default is None else {"default": default}
    return tyro.cli(what, prog=prog, args=argv, config=_STYLE, **defaults)


def parse_command(
    commands: Mapping[str, Callable[..., int]], prog: str, about: str, argv: Sequence[str] | None
) -> int:
    """Call the one of some commands that the first word of a command line names → exit status."""
    return tyro.extras.subcommand_cli_from_dict(
        dict(commands), prog=prog, description=about, args=argv, config=_STYLE
    )


def given(what: type[T], argv: Sequence[str] | None) -> T:
    """The options of this dataclass alone, wherever they stand: they decide what others are."""
    options, _ = tyro.cli(
        what, prog="cfer", args=argv, return_unknown_args=True, add_help=False, config=_STYLE
    )
    return options
