"""Predictions over HTTP: `cfer serve`.

    cfer serve                                          # http://127.0.0.1:8000, a page to try it
    curl --data-binary @video.mp4 http://127.0.0.1:8000/predict
    curl -X POST 'http://127.0.0.1:8000/predict?link=s3://bucket/video.mp4'   # with --allow

An upload is the request's body. It goes to the disk, and then to a process that can be ended
(`cfer.predict.uploads`). On a Ray cluster the same application is deployed by `cfer.predict.serve_on_ray`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import pebble
import psutil
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cfer.errors import STOP_SIGNALS, InputError, is_full
from cfer.predict.models import DEFAULT, DEFAULT_LIMITS
from cfer.predict.recognizer import Recognizer
from cfer.predict.uploads import (
    Limits,
    TooLarge,
    Work,
    Workers,
    check_allowed,
    look,
    predict,
    too_large,
    why_ended,
)

TOKEN_VARIABLE = "CFER_TOKEN"
MOST_REQUESTS = 100  # at a time, in one application: each may have a file on the disk
MOST_LINK_CHARACTERS = 2000
SECONDS_TO_STOP = 10  # for the requests that are there
MOST_FOLDER_BYTES = 75  # a socket's path has 107 in all
_FOLDER = "cfer-serve-"
GONE = 499  # who asked does not wait any more (a status of nginx's)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """What is served, and to whom.

    Attributes:
        model_name: what answers call the model.
        recognizer: the model.
        limits: of each video.
        readers: how many videos are worked on at a time.
        threads: of each reader.
        allowed: URIs that links may point below.
        token: what a request has to show; empty: it has to come from this machine's own programs.
    """

    model_name: str
    recognizer: Recognizer
    limits: Limits
    readers: int = 1
    threads: int = 1
    allowed: tuple[str, ...] = ()
    token: str = ""


# ---- who may ask ---------------------------------------------------------------------------------


def checked_token() -> str:
    """The token that the operator has set, or none.

    Raises:
        InputError: no request could show it.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token.isascii() or not token.isprintable():
        raise InputError(f"{TOKEN_VARIABLE}: give letters, digits and signs of ASCII alone")
    return token


def check_token(credentials: HTTPAuthorizationCredentials | None, token: str) -> None:
    """Raises HTTPException: the server has a token, and a request did not show it."""
    given = credentials.credentials if credentials else ""
    if token and not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(401, "give the server's token: Authorization: Bearer TOKEN")


def is_own(headers: Headers) -> bool:
    """Whether a request comes from a program of this machine, or from the service's own page.

    Any page that is open in a browser here can send requests to loopback. It then names itself as
    their origin; or has its own name resolve to loopback, and asks for that host.
    """
    (host, *more) = headers.getlist("host") or [""]
    origins = headers.getlist("origin")
    try:
        is_here = not more and is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
    return is_here and all(origin.lower() == f"http://{host.lower()}" for origin in origins)


class _OwnRequestsOnly:
    """An ASGI application of which other sites' pages get nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_own(Headers(scope=scope)):
            said = "asked by another site, or for another host than this machine"
            await JSONResponse({"detail": said}, 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- the application -----------------------------------------------------------------------------

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
Link = Annotated[
    str | None,
    Query(
        description="a video in storage that the operator allowed", max_length=MOST_LINK_CHARACTERS
    ),
]


class Refusal(BaseModel):
    """Why a request is refused, and what to do."""

    detail: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": description}
    for status, description in (
        (401, "the token is not shown"),
        (403, "asked by another site"),
        (408, "it takes too long"),
        (413, "too many bytes"),
        (422, "an option, or a video, that can't be used"),
        (503, "too many requests at a time, or a reader is being replaced: ask again"),
        (507, "no room on the server's disk"),
    )
}
_VIDEO: dict[str, Any] = {
    "requestBody": {
        "description": "the video file itself; nothing where `link` is given",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_app(service: Service, say_ready: Callable[[], None] = lambda: None) -> FastAPI:
    """The service, an ASGI application; its workers start and end with it."""
    workers = Workers(
        service.recognizer, service.limits, service.allowed, service.readers, service.threads
    )
    page_text = Path(__file__).with_name("serve.html").read_text()
    name, card = service.model_name, service.recognizer.card
    limits_text = DEFAULT_LIMITS if name == DEFAULT else ""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _remove_what_killed_servers_left()
        await asyncio.to_thread(workers.__enter__)
        say_ready()
        yield
        workers.__exit__()

    app = FastAPI(
        title="cfer",
        description="Facial expressions from the residuals of a compressed video.",
        version="1",
        lifespan=lifespan,
        # The pages that come with it load scripts of other sites, which could then ask here.
        docs_url=None,
        redoc_url=None,
    )

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    if not service.token:
        app.add_middleware(_OwnRequestsOnly)

    def check(credentials: Credentials) -> None:
        check_token(credentials, service.token)

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(page_text)

    @app.get("/model", dependencies=[Depends(check)], responses=_ERRORS)
    def describe() -> dict[str, Any]:
        """The model's classes and input, where it comes from, and what a request may cost."""
        return {
            "model": name,
            "limits": limits_text,
            "request_limits": vars(service.limits),
            "classes": list(card.classes),
            "origin": card.origin,
        }

    @app.post("/predict", dependencies=[Depends(check)], responses=_ERRORS, openapi_extra=_VIDEO)
    async def predict_(
        request: Request,
        link: Link = None,
        faces: Annotated[str, Query(pattern="^(one|all)$")] = "one",
        window_gops: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    ) -> dict[str, Any]:
        """Expressions of a video: one entry per window of time, and per face."""
        work = partial(predict, source=link or "upload", faces=faces, window_gops=window_gops)
        return {
            "model": name,
            "limits": limits_text,
            "classes": list(card.classes),
            "windows": await _answer(service, workers, request, link, work),
        }

    @app.post(
        "/look",
        dependencies=[Depends(check)],
        responses={**_ERRORS, 200: {"content": {"image/png": {}}}},
        openapi_extra=_VIDEO,
        response_class=Response,
    )
    async def look_(
        request: Request, link: Link = None, gop: Annotated[int, Query(ge=0, le=1_000_000)] = 0
    ) -> Response:
        """What the method sees of one GOP, as a PNG: I-frame, residuals, motion, bytes."""
        png = await _answer(
            service, workers, request, link, partial(look, gop=gop, model_name=name)
        )
        return Response(png, media_type="image/png")

    return app


async def _answer(
    service: Service, workers: Workers, request: Request, link: str | None, work: Work[Result]
) -> Result:
    """Take the video to the disk, have the work done on it, and leave nothing."""
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-") as folder:
        path = Path(folder) / "video"
        try:
            if link is None:
                async with asyncio.timeout(service.limits.upload_seconds):
                    await _save(request, path, service.limits)
            return await _done(request, workers.submit(work, path, link))
        except TooLarge as error:
            raise HTTPException(413, str(error)) from error
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        except TimeoutError as error:
            raise HTTPException(408, "it takes too long; give a shorter video") from error
        except pebble.ProcessExpired as error:
            raise HTTPException(422, why_ended(error, service.limits)) from error
        except BrokenProcessPool as error:
            raise HTTPException(503, "a reader is being replaced; ask again") from error
        except OSError as error:
            if not is_full(error):
                raise
            raise HTTPException(507, "there is no room on the server's disk") from error


async def _save(request: Request, path: Path, limits: Limits) -> None:
    size = 0
    with open(path, "wb") as file:
        async for data in request.stream():
            size += len(data)
            if size > limits.megabytes * 1_000_000:
                raise too_large(limits)
            file.write(data)
    if size == 0:
        raise InputError("an empty upload; the request's body is the video file")


async def _done(request: Request, future: Future[Result]) -> Result:
    """What the worker says; it is ended if nobody waits for it any more."""
    result = asyncio.wrap_future(future)
    try:
        while not (await asyncio.wait({result}, timeout=1))[0]:
            if await request.is_disconnected():
                raise HTTPException(GONE)
        return result.result()
    finally:
        future.cancel()


def _remove_what_killed_servers_left() -> None:
    """Videos of people, which nobody else would ever delete."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        number = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


# ---- command -------------------------------------------------------------------------------------


def run(
    host: str, port: int, model_name: str, readers: int, allowed: Sequence[str], limits: Limits
) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InputError: no such model; the port is taken; more readers than CPUs; links allowed to what
            is no store; other machines can reach it, and no token is set.
    """
    token = checked_token()
    if not token and not is_loopback(host):
        raise InputError(
            f"--host {host}: other machines can reach it; set a token in {TOKEN_VARIABLE}, which "
            "requests then have to show"
        )
    cpus = len(os.sched_getaffinity(0))
    if not 1 <= readers <= cpus:
        raise InputError(f"--readers {readers}: give 1 to {cpus}, which is how many CPUs there are")
    check_allowed(allowed)
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > MOST_FOLDER_BYTES:
        raise InputError(f"TMPDIR={folder}: too long for the sockets in it; give a shorter one")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except socket.gaierror as error:
        raise InputError(f"--host {host}: no address ({error.strerror})") from error
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else error
        raise InputError(f"--port {port}: cannot be used ({reason})") from error
    recognizer = Recognizer.from_pretrained(model_name)
    threads = cpus // readers
    service = Service(model_name, recognizer, limits, readers, threads, tuple(allowed), token)
    where = f"[{host}]" if ":" in host else host

    def say_ready() -> None:
        number = listener.getsockname()[1]
        print(
            f"http://{where}:{number} serves the model {model_name}; its API: /openapi.json",
            flush=True,
        )

    app = create_app(service, say_ready)
    config = uvicorn.Config(
        app,
        # Which limits what comes before a request's body. The faster one does not.
        http="h11",
        ws="none",
        limit_concurrency=MOST_REQUESTS,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
        log_level="warning",
        server_header=False,
    )
    server = uvicorn.Server(config)
    # Uvicorn sends itself again the signal that it has ended by.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    return 0 if server.started else 1
