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

from cfer.errors import InputError
from cfer.storage import Folder

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
        f"{folder.location}: another job is at work in it; wait for its end, or give another "
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
            f"{folder.location}: cannot be written ({error.strerror}); correct its permissions"
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
    job = uuid.uuid4().hex
    ended = threading.Event()

    def note(renewed: int) -> None:
        process = psutil.Process()
        told = {
            "job": job,
            "renewed": renewed,
            "host": socket.getfqdn(),
            "process": [process.pid, process.create_time()],
        }
        folder.write(NAME, json.dumps(told).encode())

    def renew() -> None:
        renewed = 0
        while not ended.wait(RENEWED_SECONDS):
            renewed += 1
            try:
                note(renewed)
            except InputError as error:  # the job itself meets it too, and says so
                log.warning("%s", error)

    note(0)
    # Of two that came at the same time, the one whose note stays.
    time.sleep(1)
    if _note_in(folder).get("job") != job:
        raise busy
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        folder.delete(NAME)


def _wait_for_silence(folder: Folder, busy: InputError) -> None:
    first = _note_in(folder)
    if not first or _is_of_a_dead_process(first):
        return
    log.warning(
        "%s: another job was at work in it; waiting up to %d s to see whether it still is",
        folder.location,
        SILENT_SECONDS,
    )
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        note = _note_in(folder)
        if not note:
            return
        if note != first:
            raise busy


def _note_in(folder: Folder) -> dict[str, Any]:
    try:
        return dict(json.loads(folder.read(NAME))) if folder.exists(NAME) else {}
    except (InputError, ValueError):  # it has gone meanwhile
        return {}


def _is_of_a_dead_process(note: dict[str, Any]) -> bool:
    if note.get("host") != socket.getfqdn():
        return False
    number, started = note["process"]
    try:
        return bool(psutil.Process(number).create_time() != started)
    except psutil.NoSuchProcess:
        return True
