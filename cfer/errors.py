"""The error of a user's mistake, and the one place that turns it into a message and an exit status.

Everything a user can get wrong (a file, a name, a number) raises `InputError` with the file or
option, what is wrong with it, and what to do. Programming errors keep their traceback.

A command that is told to stop, by Ctrl-C or by SIGTERM as Slurm and Kubernetes send it, says so in
a line and ends with 130 or 143. Ray's processes end with the one that started them.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

EXIT_INPUT_ERROR = 2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOST_SECONDS_TO_STOP = 15
_PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>

_stopped_by: list[int] = []
_is_said = threading.Lock()


class InputError(ValueError):
    """A mistake in what the user gave; the message names it, says why, and what to do about it."""


class NotFinite(InputError):
    """A loss, a weight or a score that is infinite or not a number: the training has diverged."""


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


def is_full(error: BaseException) -> bool:
    """Whether there is no room on the disk."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def status_of(main: Callable[[], int]) -> int:
    """Run a command's `main` → its exit status: an `InputError` becomes one line on stderr, and so
    does what the system refuses: a file that can't be read or written, a full disk."""
    try:
        status = main()
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except BrokenPipeError:
        # Whoever reads has enough, such as `| head`. Python flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None and not is_full(error):
            raise
        name = error.filename
        where = (
            "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
        )
        print(
            f"error: {where}{error.strerror}; correct the path or its permissions, or make room",
            file=sys.stderr,
        )
        return EXIT_INPUT_ERROR
    except WorkerError as error:
        print(f"{error.where}error: {error}", file=sys.stderr)
        return 1


def exit_with_message(main: Callable[[], int]) -> None:
    """Run a command's `main`, and end the process with its status and, for a mistake, a message."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names need not be text of any encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 1
    try:
        status = status_of(main)
    except BaseException:
        # What Ray makes of a stop in the midst of its own code is an error of another kind.
        if not _stopped_by:
            raise
    if _stopped_by:
        status = 128 + _stopped_by[0]
        _say_stopped()
        # Interrupted at whatever moment, Ray may fail at this too; its processes are ended then.
        with suppress(Exception):
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
        _kill_family()
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    """The first signal unwinds the program, in seconds. Others meanwhile change nothing."""
    if not _stopped_by:
        _stopped_by.append(number)
        _adopt_orphans()
        threading.Thread(target=_end_when_late, daemon=True).start()
        raise KeyboardInterrupt


def _end_when_late() -> None:
    """Python ignores an exception that is raised in a hook (of a fork, of the garbage collector),
    and the program goes on, or waits for ever for a lock that the hook was about to release."""
    time.sleep(MOST_SECONDS_TO_STOP)
    _end_at_once(_stopped_by[0])


def _end_at_once(number: int) -> None:
    _say_stopped()
    # What other threads have to say of the end of Ray's processes.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _adopt_orphans()
    _kill_family()
    os._exit(128 + number)


def _say_stopped() -> None:
    if _is_said.acquire(blocking=False):
        # Not by `print`: whoever was stopped may hold the lock of sys.stderr.
        os.write(2, b"interrupted; what is finished is kept\n")


def _adopt_orphans() -> None:
    """From now on, whoever loses its parent within this process's family is its child: some of
    Ray's processes outlive by a minute the one that has started them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_family() -> None:
    deadline = time.monotonic() + MOST_SECONDS_TO_STOP
    # A look misses the children of a member that ends meanwhile. In the next, they are this
    # process's own.
    looks_at_none = 0
    while looks_at_none < 2 and time.monotonic() < deadline:
        family = _family()
        looks_at_none = 0 if family else looks_at_none + 1
        for member in family:
            with suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(family, timeout=0.1)


def _family() -> list[psutil.Process]:
    """What this process has started, and what that has, but what Python has started to clean up
    when this process has ended."""
    found = []
    for member in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "multiprocessing.resource_tracker" not in " ".join(member.cmdline()):
                found.append(member)
    return found


_signals_are_kept = False


def _unblock_signals() -> None:
    if _signals_are_kept:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


# Ray's processes end by SIGTERM, and what a process has blocked its children have too.
os.register_at_fork(after_in_child=_unblock_signals)


@contextmanager
def signals_kept_from_ray() -> Iterator[None]:
    """While Ray starts, a stop ends a command at once, and does not unwind it.

    Ray forks then, where a handler's exception is lost (see above), and puts a handler of its own,
    which aborts, in the place of SIGTERM's. So signals are blocked, also for Ray's threads, and a
    thread waits for them.
    """
    global _signals_are_kept
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    is_over = threading.Event()

    def wait() -> None:
        while not is_over.is_set():
            found = signal.sigtimedwait(STOP_SIGNALS, 0.05)
            if found is not None:
                _end_at_once(found.si_signo)

    waiter = threading.Thread(target=wait, daemon=True)
    is_a_command = handlers[signal.SIGTERM] is _stop
    if is_a_command:
        _signals_are_kept = True
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        waiter.start()
    try:
        yield
    finally:
        if is_a_command:
            is_over.set()
            waiter.join()
            _signals_are_kept = False
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if is_a_command:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
