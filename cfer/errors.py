"""The error of a user's mistake, and the one place that turns it into a message and an exit status.

Everything a user can get wrong (a file, a name, a number) raises `InputError` with the file or
option, what is wrong with it, and what to do. Programming errors keep their traceback.

A command that is told to stop, by Ctrl-C or by SIGTERM as Slurm and Kubernetes send it, says so in
a line and ends with 130 or 143. Ray's processes end with the one that started them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

EXIT_INPUT_ERROR = 2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOST_SECONDS_TO_STOP = 15


@dataclass(frozen=True)
class _Stop:
    """A signal, and when it came (`time.monotonic`)."""

    number: int
    when: float


_stopped_by: list[_Stop] = []


class InputError(ValueError):
    """A mistake in what the user gave; the message names it, says why, and what to do about it."""


class WorkerError(RuntimeError):
    """What a job ended with in another process, in a line; its traceback there is `where`."""

    where = ""


def end_quietly_while_importing() -> None:
    """Called before imports that take seconds, and leave a traceback of theirs at Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(128 + number)

    for number in STOP_SIGNALS:
        signal.signal(number, end)


def exit_with_message(main: Callable[[], int]) -> None:
    """Run a command's `main`, and end the process: an `InputError` becomes one line on stderr."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        status = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_INPUT_ERROR
    except WorkerError as error:
        print(f"{error.where}error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = _status_of_a_stop()
    except SystemExit as ended:
        # Ray's own answer to SIGTERM, while it starts.
        if ended.code != signal.SIGTERM:
            raise
        _stopped_by.append(_Stop(signal.SIGTERM, time.monotonic()))
        status = _status_of_a_stop()
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal unwinds the program, in seconds. Others meanwhile change nothing: a process
    that ends at once leaves some of Ray's behind for a minute."""
    if not _stopped_by:
        _stopped_by.append(_Stop(number, time.monotonic()))
        raise KeyboardInterrupt
    if time.monotonic() - _stopped_by[0].when > MOST_SECONDS_TO_STOP:
        os._exit(128 + number)


def _status_of_a_stop() -> int:
    print("interrupted; what is finished is kept", file=sys.stderr)
    return 128 + (_stopped_by[0].number if _stopped_by else signal.SIGINT)
