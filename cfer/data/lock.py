"""One job owns a folder: a second one there would remove what the first is about to need.

    with owned(Folder("shards"), "--out"):
        ...

On a disk the owner holds a lock of the operating system, which ends with its process. An object
store has no locks: there the owner leaves a note and renews it, and the job of a note that is not
renewed has died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil

from cfer.data.storage import Folder
from cfer.errors import InputError

log = logging.getLogger(__name__)

NAME = ".owner"
RENEWED_SECONDS = 20
# A note this old is a dead job's; a store may be slow or out of order for nearly as long.
SILENT_SECONDS = 90


@contextlib.contextmanager
def owned(folder: Folder, option: str) -> Iterator[None]:
    """Own the folder while the context lasts.

    Args:
        option: the option that names the folder, for the message.

    Raises:
        InputError: another job is at work in it.
    """
    busy = InputError(
        f"{folder.name_of()}: another job is at work in it; wait for its end, or give another "
        f"{option}"
    )
    with _locked(folder, busy) if folder.is_local else _noted(folder, busy):
        yield


@contextlib.contextmanager
def _locked(folder: Folder, busy: InputError) -> Iterator[None]:
    path = Path(folder.path)
    made = [each for each in (path, *path.parents) if not each.exists()]
    lock = filelock.FileLock(path / NAME)
    try:
        os.makedirs(path, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise busy from error
    except OSError as error:
        raise InputError(
            f"{folder.name_of()}: cannot be written ({error.strerror}); correct its permissions"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path / NAME)
            # Only if nothing is in them: a job that was refused leaves no folder behind.
            for each in made:
                os.rmdir(each)
        lock.release()


@contextlib.contextmanager
def _noted(folder: Folder, busy: InputError) -> Iterator[None]:
    _wait_for_silence(folder, busy)
    job = uuid.uuid4().hex
    ended = threading.Event()

    def is_ours() -> bool:
        return (_note_in(folder) or "").startswith(job)

    def write(renewed: int) -> None:
        note = f"{job} renewed {renewed} times by process {os.getpid()} of {_machine()}"
        folder.write(NAME, note.encode())

    def renew() -> None:
        renewed = 0
        while not ended.wait(RENEWED_SECONDS):
            renewed += 1
            try:
                if not is_ours():
                    log.warning("%s: another job has taken it over", folder.name_of())
                    return
                write(renewed)
            except InputError as error:  # the job itself meets this error too, and ends by it
                log.warning("%s", error)

    write(0)
    # Of two jobs that came at the same time, the one whose note stays is the owner.
    time.sleep(1)
    if not is_ours():
        raise busy
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if is_ours():
            folder.delete(NAME)


def _wait_for_silence(folder: Folder, busy: InputError) -> None:
    first = _note_in(folder)
    if first is None or _is_of_a_dead_process(first):
        return
    log.warning(
        "%s: another job was at work in it; waiting up to %d s to see whether it still is",
        folder.name_of(),
        SILENT_SECONDS,
    )
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        note = _note_in(folder)
        if note is None:
            return
        if note != first:
            raise busy


def _note_in(folder: Folder) -> str | None:
    return folder.read(NAME).decode(errors="replace") if folder.exists(NAME) else None


def _is_of_a_dead_process(note: str) -> bool:
    process = re.search(rf"by process (\d+) of {re.escape(_machine())}$", note)
    return process is not None and not psutil.pid_exists(int(process[1]))


def _machine() -> str:
    """One boot of a machine, and one container on it: several machines may share a host name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return socket.getfqdn()
    return f"{boot.read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
