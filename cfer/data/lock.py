"""One job owns a folder: a second one there would remove what the first is about to need.

    with owned(Folder("shards"), "--out"):
        ...

A folder on a disk is owned by a lock of the operating system, which ends with its process. In an
object store there is none: the owner leaves a note there and renews it; a note that is not renewed
is of a job that has died.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import psutil

from cfer.data.storage import Folder
from cfer.errors import InputError

log = logging.getLogger(__name__)

NAME = ".owner"
RENEWED_SECONDS = 20
# Without a new note for so long, its job is dead; a store may be slow, or out of order for a while.
SILENT_SECONDS = 90


@contextlib.contextmanager
def owned(folder: Folder, option: str) -> Iterator[None]:
    """The folder is this job's, while the context lasts.

    Args:
        option: which names the folder, for the message.

    Raises:
        InputError: another job is at work in it.
    """
    busy = InputError(
        f"{_shown(folder)}: another job is at work in it; wait for its end, or give another "
        f"{option}"
    )
    with _locked(folder, busy) if folder.is_local else _noted(folder, busy):
        yield


@contextlib.contextmanager
def _locked(folder: Folder, busy: InputError) -> Iterator[None]:
    path = Path(folder.path)
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        os.makedirs(path, exist_ok=True)
        lock = filelock.FileLock(path / NAME)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise busy from error
    except OSError as error:
        raise InputError(
            f"{_shown(folder)}: cannot be written ({error.strerror}); correct its permissions"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path / NAME)
            # Only if nothing is in them: what was refused leaves none behind.
            for each in made:
                os.rmdir(each)
        lock.release()


@contextlib.contextmanager
def _noted(folder: Folder, busy: InputError) -> Iterator[None]:
    _wait_for_silence(folder, busy)
    own = {"job": uuid.uuid4().hex, "machine": _machine(), "process": os.getpid()}
    ended = threading.Event()

    def is_ours() -> bool:
        note = _note_in(folder)
        return isinstance(note, dict) and note.get("job") == own["job"]

    def write(renewed: int) -> None:
        folder.write(NAME, json.dumps({**own, "renewed": renewed}).encode())

    def renew() -> None:
        renewed = 0
        while not ended.wait(RENEWED_SECONDS):
            renewed += 1
            try:
                if not is_ours():
                    log.warning("%s: another job has taken it over", _shown(folder))
                    return
                write(renewed)
            except InputError as error:  # the job itself meets it too, and ends by it
                log.warning("%s", error)

    write(0)
    # Of two that came at the same time, the one whose note stays.
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
        _shown(folder),
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


def _note_in(folder: Folder) -> Any:
    """None where there is none; one that is no JSON is somebody's all the same."""
    if not folder.exists(NAME):
        return None
    text = folder.read(NAME).decode(errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_of_a_dead_process(note: Any) -> bool:
    if not isinstance(note, dict) or note.get("machine") != _machine():
        return False
    number = note.get("process")
    return isinstance(number, int) and not psutil.pid_exists(number)


def _shown(folder: Folder) -> str:
    return folder.name_of("").rstrip("/")


def _machine() -> str:
    """Of one start of it, and of one container in it: names are given twice."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return socket.getfqdn()
    return f"{boot.read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
