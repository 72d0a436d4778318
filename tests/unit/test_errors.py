"""What a command ends with: its status, and a line of a user's mistake."""

from __future__ import annotations

import errno
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cfer.cluster import _check_address
from cfer.errors import STOP_SIGNALS, InputError, WorkerError, exit_with_message, status_of


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A command has the signals for itself; this process is pytest's."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize("status", [0, 1])
def test_the_status_is_the_commands_own(status, capsys):
    with pytest.raises(SystemExit) as ended:
        exit_with_message(lambda: status)
    assert ended.value.code == status
    assert capsys.readouterr().err == ""


def test_a_mistake_is_a_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        exit_with_message(lambda: raising(InputError("--size 63: give an even number")))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --size 63: give an even number\n"


def test_the_error_of_a_job_elsewhere_is_printed_with_its_traceback(capsys):
    error = WorkerError("worker 1: out of memory")
    error.traceback = "Traceback: there\n"
    with pytest.raises(SystemExit) as ended:
        exit_with_message(lambda: raising(error))
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Traceback: there\nerror: worker 1: out of memory\n"


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), SystemExit(3)])
def test_whatever_else_is_raised_goes_on(error):
    with pytest.raises(type(error)) as caught:
        exit_with_message(lambda: raising(error))
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/out/x"), "/out/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"/out"), "error: /out: Is a directory"),
    ],
)
def test_what_the_system_refuses_is_a_line(error, said, capsys):
    assert status_of(lambda: raising(error)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.startswith("error: ")
    assert line.endswith("; correct the path or its permissions, or make room")


@pytest.mark.parametrize(
    ("program", "status", "last_line"),
    [
        (
            "sys.modules['mlflow'] = None\ndef main(): import cfer.tracking",
            2,
            "error: mlflow is not installed: in the checkout of cfer, pip install '.[train]'",
        ),
        ("def main(): import cfer.none", 1, "ModuleNotFoundError: No module named 'cfer.none'"),
    ],
)
def test_a_package_that_is_not_installed_is_a_line(program, status, last_line):
    """In a process of its own, in which Python can't import the package."""
    program = f"import sys, cfer.errors\n{program}\ncfer.errors.exit_with_message(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == status
    lines = done.stderr.splitlines()
    assert lines[-1] == last_line
    assert len(lines) == 1 or status == 1


def test_an_error_of_the_network_keeps_its_traceback():
    with pytest.raises(ConnectionResetError):
        status_of(lambda: raising(ConnectionResetError(errno.ECONNRESET, "reset")))


def test_a_cluster_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("cfer.cluster.MOST_SECONDS_TO_JOIN", 0)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # and does not listen
        for address, reason in (
            (f"127.0.0.1:{one.getsockname()[1]}", "Connection refused"),
            (f"ray://127.0.0.1:{one.getsockname()[1]}", "Connection refused"),
            ("127.0.0.1:port", "Port could not be cast"),
        ):
            said = re.escape(f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason}")
            with pytest.raises(InputError, match=said):
                _check_address(address)
