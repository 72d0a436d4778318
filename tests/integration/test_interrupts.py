"""How a command ends that is told to stop, at whatever moment: small ones, without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from helpers import REPOSITORY, wait_for

STOPPED = "interrupted; what is finished is kept\n"
BEGINNING = """
import os, signal, subprocess, sys, threading
from cfer import errors

def say(text):
    print(text, file=sys.stderr, flush=True)

def start_children():
    return subprocess.Popen(["sh", "-c", "sleep infinity & wait"], stderr=subprocess.DEVNULL)

"""


class Command:
    """A Python program in a session of its own, which says what it is at on stderr."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGINNING + program],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.family = [psutil.Process(self.process.pid)]

    def says(self, line: str) -> None:
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == line + "\n"

    def has_children(self) -> None:
        """As soon as the two of `start_children` are there, they are known."""
        wait_for(lambda: len(self.family[0].children(recursive=True)) == 2, self.process)
        self.family += self.family[0].children(recursive=True)

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ends(self) -> tuple[int, str]:
        """Its status, and what else it said; nothing is left of it."""
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        status = self.process.wait()
        assert not any(is_at_work(member) for member in self.family)
        return status, said

    def kill(self) -> None:
        for member in self.family:
            if is_at_work(member):
                member.kill()
        self.process.wait()


def is_at_work(member: psutil.Process) -> bool:
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def started() -> Iterator[list[Command]]:
    """What a test has started, to be ended where the test fails."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        command.kill()


@pytest.fixture
def start(started: list[Command]):
    def start(program: str) -> Command:
        started.append(Command(program))
        return started[-1]

    return start


WORK = """
def main():
    child = start_children()
    try:
        say("working")
        threading.Event().wait()
    finally:
        # The other one has lost its parent, as some of Ray's do, and lives on.
        child.kill()
        child.wait()
        say("unwinding")
        sys.stdin.readline()

errors.exit_with_message(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_unwinds_the_program_and_a_second_one_changes_nothing(number, start):
    command = start(WORK)
    command.says("working")
    command.has_children()
    os.kill(command.process.pid, number)
    command.says("unwinding")
    for other in (signal.SIGINT, signal.SIGTERM):
        os.kill(command.process.pid, other)
    command.goes_on()
    assert command.ends() == (128 + number, STOPPED)


def test_a_stop_that_ray_makes_another_error_of(start):
    command = start(
        """
def main():
    try:
        say("working")
        threading.Event().wait()
    except KeyboardInterrupt:
        raise RuntimeError("a system call was interrupted")

errors.exit_with_message(main)
"""
    )
    command.says("working")
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.ends() == (143, STOPPED)


# Where Python ignores exceptions, the handler's too; and whoever waits then waits for ever. The
# time in which a program is to end is over when it waits: no test waits for a clock.
LOST = """
import time

class Time:
    monotonic = time.monotonic

    @staticmethod
    def sleep(seconds):
        assert seconds == errors.MOST_SECONDS_TO_STOP
        waits.wait()

errors.time = Time
waits = threading.Event()
lock = threading.Lock()

class Hook:
    def __del__(self):
        lock.acquire()
        start_children()
        say("within")
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGTERM)
        lock.release()

def main():
    Hook()
    say("after")
    waits.set()
    lock.acquire()

errors.exit_with_message(main)
"""


def test_a_stop_that_python_loses(start):
    command = start(LOST)
    command.says("within")
    command.has_children()
    command.goes_on()
    status, said = command.ends()
    assert status == 143
    assert said.endswith(f"\nafter\n{STOPPED}")
    assert "KeyboardInterrupt" in said, "of the hook, by Python itself"


WHILE_RAY_STARTS = """
def main():
    with errors.signals_kept_from_ray():
        start_children()
        signal.signal(signal.SIGTERM, lambda *_: os.abort())  # as Ray does
        say("starting")
        sys.stdin.readline()
    say("started")
    threading.Event().wait()

errors.exit_with_message(main)
"""


def test_a_stop_while_ray_starts_ends_the_program_at_once(start):
    command = start(WHILE_RAY_STARTS)
    command.says("starting")
    command.has_children()
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.ends() == (143, STOPPED)


def test_a_stop_after_ray_has_started_finds_the_programs_own_handlers(start):
    command = start(WHILE_RAY_STARTS)
    command.says("starting")
    command.has_children()
    command.goes_on()
    command.says("started")
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.ends() == (143, STOPPED)
