"""The error of a user's mistake, and the one place that turns it into a message and an exit status.

Everything a user can get wrong (a file, a name, a number) raises `InputError` with the file or
option, what is wrong with it, and what to do. Programming errors keep their traceback.

A command that is stopped, by Ctrl-C or by SIGTERM as Slurm and Kubernetes send it, reports that in
one line and exits with 130 or 143. All processes that it has started, Ray's too, end with it.
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
from functools import partial
from types import FrameType

import psutil

EXIT_INPUT_ERROR = 2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOST_SECONDS_TO_STOP = 15
_OUR_PACKAGES = ("cfer", "pipeline", "benchmarks")
# The extras of pyproject.toml that have a package; all others are of `train`.
_EXTRAS = {
    **dict.fromkeys(("pebble", "fastapi", "uvicorn"), "serve"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
}
_PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>

_stopped_by: list[int] = []
_is_ending = threading.Lock()


class InputError(ValueError):
    """A mistake in what the user gave; the message names it, says why, and what to do about it."""


class NotFinite(InputError):
    """A loss, a weight or a score that is infinite or not a number: the training has diverged."""


class WorkerError(RuntimeError):
    """A job failed in another process; the message is one line, `traceback` the text from there."""

    traceback = ""


def is_full(error: BaseException) -> bool:
    """Whether there is no room on the disk."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def status_of(main: Callable[[], int]) -> int:
    """Run a command's `main` → its exit status.

    One line on stderr is all that a user sees of an `InputError`, of a package that is not
    installed, and of a file that the system can't read or write.
    """
    try:
        status = main()
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except ModuleNotFoundError as error:
        package = (error.name or "cfer").split(".")[0]
        if package in _OUR_PACKAGES:
            raise
        print(
            f"error: {package} is not installed: in the checkout of cfer, pip install "
            f"'.[{_EXTRAS.get(package, 'train')}]'",
            file=sys.stderr,
        )
        return EXIT_INPUT_ERROR
    except BrokenPipeError:
        # The reader has enough, such as `| head`. Python flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        name = error.filename
        if name is None and not is_full(error):
            raise
        where = f"{os.fsdecode(name) if isinstance(name, bytes) else name}: " if name else ""
        print(
            f"error: {where}{error.strerror}; correct the path or its permissions, or make room",
            file=sys.stderr,
        )
        return EXIT_INPUT_ERROR
    except WorkerError as error:
        print(f"{error.traceback}error: {error}", file=sys.stderr)
        return 1


def exit_with_message(main: Callable[[], int]) -> None:
    """Run a command's `main`, and end the process with its status and, for a mistake, a message.

    A command that was stopped ends without Python's exit handlers, which could wait for what was
    interrupted.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names need not be text of any encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 1
    try:
        status = status_of(main)
    except BaseException:
        # Ray turns a stop in the midst of its own code into an error of another kind.
        if not _stopped_by:
            raise
    if _stopped_by:
        # Interrupted at whatever moment, Ray may fail at this too; its processes are killed next.
        with suppress(Exception):
            sys.stdout.flush()
        with suppress(Exception):
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
        _end_stopped(_stopped_by[0])
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> None:
    """The handler of a command: the first signal unwinds the program, later ones change nothing.

    Python ignores an exception that is raised in a hook (of a fork, of the garbage collector), and
    the program goes on, or waits for ever for a lock that the hook was about to release; hence the
    deadline.
    """
    if not _stopped_by:
        _stopped_by.append(number)
        _adopt_orphans()
        late = (number, MOST_SECONDS_TO_STOP)
        threading.Thread(target=_end_stopped, args=late, daemon=True).start()
        raise KeyboardInterrupt


def _end_stopped(number: int, after_seconds: float = 0) -> None:
    """Report the stop, kill all that this process has started, and end it. Any thread may do so."""
    time.sleep(after_seconds)
    _is_ending.acquire()
    # Not by `print`: whoever was stopped may hold the lock of sys.stderr.
    with suppress(OSError):
        os.write(2, b"interrupted; what is finished is kept\n")
    # Other threads report that Ray's processes have ended.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _adopt_orphans()
    _kill_descendants()
    os._exit(128 + number)


def _adopt_orphans() -> None:
    """From now on, a descendant that loses its parent is a child of this process: some of Ray's
    processes outlive by a minute the one that has started them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_descendants() -> None:
    deadline = time.monotonic() + MOST_SECONDS_TO_STOP
    # A look misses the children of a process that ends meanwhile; the next finds them adopted.
    looks_at_none = 0
    while looks_at_none < 2 and time.monotonic() < deadline:
        killed = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                # Python's own, which cleans up when this process has ended.
                if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process)
        psutil.wait_procs(killed, timeout=0.1)
        looks_at_none = 0 if killed else looks_at_none + 1


@contextmanager
def signals_kept_from_ray() -> Iterator[None]:
    """While Ray starts, a stop ends a command at once, without unwinding it.

    Ray forks then, where a handler's exception is lost (see `_stop`), and replaces the handler of
    SIGTERM by one that aborts. So the signals are blocked, also for Ray's threads, and a thread
    waits for them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if handlers[signal.SIGTERM] is not _stop:  # a program of somebody else's
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
        return
    has_started = threading.Event()

    def wait() -> None:
        while not has_started.is_set():
            received = signal.sigtimedwait(STOP_SIGNALS, 0.05)
            if received is not None:
                _end_stopped(received.si_signo)

    # A child inherits what is blocked, and Ray ends its processes by SIGTERM.
    unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOP_SIGNALS)
    os.register_at_fork(after_in_child=unblock)
    waiter = threading.Thread(target=wait, daemon=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    waiter.start()
    try:
        yield
    finally:
        has_started.set()
        waiter.join()
        for number in STOP_SIGNALS:
            signal.signal(number, _stop)
        unblock()
