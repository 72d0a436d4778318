"""The error of a user's mistake, and the one place that turns it into a message and an exit status.

Everything a user can get wrong (a file, a name, a number) raises `InputError` with the file or
option, what is wrong with it, and what to do. Programming errors keep their traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_INPUT_ERROR = 2


class InputError(ValueError):
    """A mistake in what the user gave; the message names it, says why, and what to do about it."""


def exit_with_message(main: Callable[[], int]) -> None:
    """Run a command's `main`, and end the process: an `InputError` becomes one line on stderr."""
    try:
        status = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_INPUT_ERROR
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept", file=sys.stderr)
        status = 130
    sys.exit(status)
