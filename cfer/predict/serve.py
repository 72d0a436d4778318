"""Predictions over HTTP: `cfer serve`.

    cfer serve                                          # http://127.0.0.1:8000, a page to try it
    curl --data-binary @video.mp4 http://127.0.0.1:8000/predict
    curl -X POST 'http://127.0.0.1:8000/predict?link=s3://bucket/video.mp4'   # with --allow

An upload is the request's body. It goes to the disk, and then to a process that can be ended
(`cfer.predict.uploads`). `cfer.predict.serve_on_ray` deploys the same application on a Ray cluster.
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
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import pebble
import psutil
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cfer.codec.encode import MOST_SECONDS
from cfer.errors import STOP_SIGNALS, InputError, is_full
from cfer.predict.limits import Limits
from cfer.predict.models import DEFAULT, DEFAULT_LIMITS
from cfer.predict.recognizer import Recognizer
from cfer.predict.uploads import (
    TooLarge,
    Work,
    Workers,
    append,
    check_allowed,
    look,
    predict,
    why_ended,
)

TOKEN_VARIABLE = "CFER_TOKEN"
MOST_REQUESTS = 100  # at a time, in one application: each may have a file on the disk
MOST_LINK_CHARACTERS = 2000
SECONDS_TO_STOP = 10  # for the requests that are being answered
MOST_FOLDER_BYTES = 75  # a socket's path may have 107 in all
_FOLDER = "cfer-serve-"
GONE = 499  # the client no longer waits (a status of nginx's)
Result = TypeVar("Result")


# ---- who may ask ---------------------------------------------------------------------------------


def checked_token() -> str:
    """The token that the operator has set, or ""; InputError: no request could show it."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token.isascii() or not token.isprintable():
        raise InputError(f"{TOKEN_VARIABLE}: give only letters, digits and signs of ASCII")
    return token


def check_token(credentials: HTTPAuthorizationCredentials | None, token: str) -> None:
    """Raises HTTPException: the server has a token, and a request did not show it."""
    given = credentials.credentials if credentials else ""
    if token and not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(401, "give the server's token: Authorization: Bearer TOKEN")


def is_own(headers: Headers) -> bool:
    """Whether a request comes from a program of this machine, or from the service's own page.

    Any page that is open in a browser here can send requests to loopback. The browser then names
    the page as their origin; or the page's own name resolves to loopback, and they ask for that
    host.
    """
    (host, *more) = headers.getlist("host") or [""]
    origins = headers.getlist("origin")
    try:
        is_here = not more and is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
    return is_here and all(origin.lower() == f"http://{host.lower()}" for origin in origins)


def own_requests_only(app: ASGIApp) -> ASGIApp:
    """An ASGI application that answers nothing to the pages of other sites."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_own(Headers(scope=scope)):
            refusal = "asked by another site, or for another host than this machine"
            await JSONResponse({"detail": refusal}, 403)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- the application -----------------------------------------------------------------------------

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


class Asked(BaseModel, extra="forbid"):
    """The options of a request."""

    link: str | None = Field(
        None,
        description="a video in storage that the operator allowed",
        max_length=MOST_LINK_CHARACTERS,
    )


class AskedToPredict(Asked):
    """Those of /predict."""

    faces: Literal["one", "all"] = "one"
    window_seconds: float | None = Field(None, gt=0, le=MOST_SECONDS)


class AskedToLook(Asked):
    """Those of /look."""

    gop: int = Field(0, ge=0, le=1_000_000)


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
        "description": "the video file itself; nothing if `link` is given",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_app(
    model_name: str,
    workers: Workers,
    token: str = "",
    say_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The service, an ASGI application; its workers start and end with it.

    Args:
        model_name: what answers call the model.
        workers: what works on the videos.
        token: what a request has to show; if empty, it has to come from this machine itself.
        say_ready: called once the workers are ready.
    """
    recognizer, limits = workers.recognizer, workers.limits
    page_text = Path(__file__).with_name("serve.html").read_text()
    about = {
        "model": model_name,
        "limits": DEFAULT_LIMITS if model_name == DEFAULT else "",
        "classes": list(recognizer.card.classes),
    }

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
        # FastAPI's own pages load scripts of other sites, which could then send requests here.
        docs_url=None,
        redoc_url=None,
    )

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    if not token:
        app.add_middleware(own_requests_only)

    def check(credentials: Credentials) -> None:
        check_token(credentials, token)

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(page_text)

    @app.get("/model", dependencies=[Depends(check)], responses=_ERRORS)
    def describe() -> dict[str, Any]:
        """The model's classes and input, its origin, and what a request may cost."""
        return {**about, "request_limits": vars(limits), "origin": recognizer.card.origin}

    @app.post("/predict", dependencies=[Depends(check)], responses=_ERRORS, openapi_extra=_VIDEO)
    async def predict_(
        request: Request, asked: Annotated[AskedToPredict, Query()]
    ) -> dict[str, Any]:
        """Expressions of a video: one entry per window of time, and per face; its events, from
        onset to apex; and how it was read, in words."""
        work = partial(
            predict,
            source=asked.link or "upload",
            faces=asked.faces,
            window_seconds=asked.window_seconds,
        )
        return {**about, **await _answer(workers, request, asked.link, work)}

    @app.post(
        "/look",
        dependencies=[Depends(check)],
        responses={**_ERRORS, 200: {"content": {"image/png": {}}}},
        openapi_extra=_VIDEO,
        response_class=Response,
    )
    async def look_(request: Request, asked: Annotated[AskedToLook, Query()]) -> Response:
        """What the method sees of one GOP, as a PNG: I-frame, residuals, motion, bytes."""
        work = partial(look, gop=asked.gop, model_name=model_name)
        picture = await _answer(workers, request, asked.link, work)
        return Response(picture, media_type="image/png")

    return app


async def _answer(
    workers: Workers, request: Request, link: str | None, work: Work[Result]
) -> Result:
    """Take the video to the disk, have the work done on it, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-") as folder:
        path = Path(folder) / "video"
        try:
            if link is None:
                async with asyncio.timeout(workers.limits.upload_seconds):
                    await _save(request, path, workers.limits)
            return await _done(request, workers.submit(work, path, link))
        except TooLarge as error:
            raise HTTPException(413, str(error)) from error
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        except TimeoutError as error:
            raise HTTPException(408, "it takes too long; give a shorter video") from error
        except pebble.ProcessExpired as error:
            raise HTTPException(422, why_ended(error, workers.limits)) from error
        except BrokenProcessPool as error:
            raise HTTPException(503, "a reader is being replaced; ask again") from error
        except OSError as error:
            if not is_full(error):
                raise
            raise HTTPException(507, "there is no room on the server's disk") from error


async def _save(request: Request, path: Path, limits: Limits) -> None:
    with open(path, "wb") as file:
        async for data in request.stream():
            append(file, data, limits)
        size = file.tell()
    if size == 0:
        raise InputError("an empty upload; the request's body is the video file")


async def _done(request: Request, future: Future[Result]) -> Result:
    """The worker's result; the worker is ended if the client no longer waits for it."""
    result = asyncio.wrap_future(future)
    try:
        while not (await asyncio.wait({result}, timeout=1))[0]:
            if await request.is_disconnected():
                raise HTTPException(GONE)
        return result.result()
    finally:
        future.cancel()


def _remove_what_killed_servers_left() -> None:
    """They are videos of people, which nobody else would ever delete."""
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
        InputError: no such model; the port is taken; more readers than CPUs; links are allowed to
            something that is not a store; other machines can reach the server, and no token is set.
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
    workers = Workers(recognizer, limits, allowed, readers, cpus // readers)
    where = f"[{host}]" if ":" in host else host

    def say_ready() -> None:
        address = f"http://{where}:{listener.getsockname()[1]}"
        print(f"{address} serves the model {model_name}; its API: /openapi.json", flush=True)

    config = uvicorn.Config(
        create_app(model_name, workers, token, say_ready),
        # It limits the bytes of a request's headers. The faster httptools does not.
        http="h11",
        ws="none",
        limit_concurrency=MOST_REQUESTS,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
        log_level="warning",
        server_header=False,
    )
    server = uvicorn.Server(config)
    # Once it has ended, uvicorn raises again the signal that ended it.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    return 0 if server.started else 1
