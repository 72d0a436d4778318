"""Whom a server answers; and one that cannot start."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import HTTPException
from fastapi.security import HTTPAuthorizationCredentials
from starlette.datastructures import Headers

from cfer.cli import run
from cfer.errors import InputError
from cfer.predict.limits import Limits
from cfer.predict.recognizer import Recognizer
from cfer.predict.serve import check_token, create_app, is_own
from cfer.predict.uploads import Workers

# ---- the token -----------------------------------------------------------------------------------


def shown(token: str) -> HTTPAuthorizationCredentials:
    return HTTPAuthorizationCredentials(scheme="Bearer", credentials=token)


def test_a_token_that_is_set_has_to_be_shown() -> None:
    token = "wonderful!"
    check_token(shown(token), token)
    for given in (None, shown(""), shown("wonderful"), shown(f"{token} "), shown(token.upper())):
        with pytest.raises(HTTPException, match="401"):
            check_token(given, token)


def test_without_a_token_nothing_has_to_be_shown() -> None:
    check_token(None, "")
    check_token(shown("anything"), "")


def test_every_answer_but_the_page_may_ask_for_a_token() -> None:
    app = create_app("default", Workers(Recognizer.from_pretrained(), Limits()))
    paths = app.openapi()["paths"]
    assert set(paths) == {"/model", "/predict", "/look"}
    for path, methods in paths.items():
        for method, described in methods.items():
            assert described["security"] == [{"HTTPBearer": []}], (path, method)


# ---- other sites' pages, where there is no token -------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:8000"},
        {"host": "localhost:8000", "origin": "http://localhost:8000"},
        {"host": "LOCALHOST:8000", "origin": "http://localhost:8000"},
        {"host": "[::1]:8000", "origin": "http://[::1]:8000"},
        {"host": "localhost", "origin": "http://localhost"},
    ],
)
def test_a_program_of_this_machine_and_the_services_own_page_may_ask(
    headers: dict[str, str],
) -> None:
    assert is_own(Headers(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example:8000"},  # its name was made to resolve to 127.0.0.1
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example"},
        {"host": "192.168.0.7:8000"},
        {"host": "127.0.0.1:8000", "origin": "http://evil.example"},
        {"host": "127.0.0.1:8000", "origin": "null"},
        {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8001"},
        {"host": "127.0.0.1:8000", "origin": "http://localhost:8000"},
        {"host": "127.0.0.1:8000", "origin": "https://127.0.0.1:8000"},
        {"host": "127.0.0.1:8000", "origin": ""},
        {"host": "evil.example", "origin": "http://evil.example"},
        {"host": "[::1"},
        {"host": "[evil]"},
    ],
)
def test_another_sites_page_may_not(headers: dict[str, str]) -> None:
    assert not is_own(Headers(headers))


def test_two_hosts_or_two_origins_are_not_ones_own() -> None:
    host, origin = (b"host", b"localhost"), (b"origin", b"http://localhost")
    assert is_own(Headers(raw=[host, origin]))
    assert not is_own(Headers(raw=[host, (b"host", b"evil.example")]))
    assert not is_own(Headers(raw=[host, origin, (b"origin", b"http://evil.example")]))


# ---- a server that cannot start ------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--host 0.0.0.0",
            "--host 0.0.0.0: other machines can reach it; set a token in CFER_TOKEN",
        ),
        ("--host ::", "--host ::: other machines can reach it; set a token in CFER_TOKEN"),
        ("--host example.org", "--host example.org: other machines can reach it"),
        ("--port TAKEN", "--port TAKEN: cannot be used (Address already in use)"),
        ("--port FREE --model missing.safetensors", "missing.safetensors: not a readable model"),
        ("--port 99999", "--port 99999: cannot be used ("),
        ("--host nosuch.invalid", "--host nosuch.invalid: other machines can reach it"),
        ("--port FREE --allow /videos", "--allow /videos: give a URI, such as s3://bucket"),
        ("--port FREE --allow S3://b", "--allow S3://b: give a URI"),
        ("--port FREE --allow foo://b", "foo://b: not a usable location"),
        ("--port FREE --allow s3://b?x=1&region=a", "s3://b?x=1&region=a: not a usable location"),
        ("--port FREE --time-limit 0", "--time-limit 0: give 1 or more"),
        ("--port FREE --max-seconds -1", "--max-seconds -1: give 1 or more"),
        ("--port FREE --readers 0", "--readers 0: give 1 to CPUS, which is how many CPUs"),
        ("--port FREE --readers 1000", "--readers 1000: give 1 to CPUS, which is how many CPUs"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    taken_port: int, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.delenv("CFER_TOKEN", raising=False)
    options = options.replace("TAKEN", str(taken_port)).replace("FREE", "0")
    message = message.replace("TAKEN", str(taken_port))
    message = message.replace("CPUS", str(len(os.sched_getaffinity(0))))
    with pytest.raises(InputError, match=re.escape(message)):
        run(["serve", *options.split()])


def test_a_folder_whose_sockets_would_have_too_long_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 80)))
    with pytest.raises(InputError, match=r"TMPDIR=.*: too long for the sockets in it"):
        run(["serve", "--port", "0"])


def test_a_token_that_no_request_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFER_TOKEN", "wonderful €")
    with pytest.raises(InputError, match="CFER_TOKEN: give only letters, digits and signs of"):
        run(["serve", "--port", "0"])


def test_with_a_token_other_machines_may_reach_it(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFER_TOKEN", "wonderful")
    with pytest.raises(InputError, match="cannot be used"):
        run(["serve", "--host", "0.0.0.0", "--port", str(taken_port)])


def test_on_a_cluster_there_has_to_be_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from cfer.predict.serve_on_ray import Arguments, application

    monkeypatch.delenv("CFER_TOKEN", raising=False)
    with pytest.raises(InputError, match="CFER_TOKEN is not set on the cluster's nodes"):
        application(Arguments())
    monkeypatch.setenv("CFER_TOKEN", "wonderful")
    with pytest.raises(InputError, match=r"missing\.safetensors: not a readable model"):
        application(Arguments(model="missing.safetensors"))
