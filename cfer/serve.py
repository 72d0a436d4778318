"""Predictions over HTTP: `cfer serve`, on Ray Serve.

    cfer serve                                          # http://127.0.0.1:8000, a page to try it
    curl --data-binary @video.mp4 http://127.0.0.1:8000/predict
    curl -X POST 'http://127.0.0.1:8000/predict?link=s3://bucket/video.mp4'   # with --allow

An upload is the request's body. Readers (one process each) take uploads to disk, find faces and
read residuals; the network is a process of its own and takes what comes from all of them at once.
What an upload may cost is limited before it is believed: its bytes as they come, its container
format, its picture size by the decoder itself, its frames, and the time it takes.
"""

# No `from __future__ import annotations`: Ray Serve sends the API to its processes without the
# names that FastAPI would look such annotations up in.
import asyncio
import contextlib
import hmac
import io
import ipaddress
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import av
import av.error
import numpy as np
import pyarrow.fs as pafs
import ray
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ray import serve
from ray._common.network_utils import build_address
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve.handle import DeploymentHandle

from cfer.errors import InputError
from cfer.model import Predictor
from cfer.model_file import ModelCard
from cfer.models import DEFAULT, DEFAULT_LIMITS, open_model
from cfer.predict import Recognizer
from cfer.timeline import as_json

TOKEN_VARIABLE = "CFER_TOKEN"
# Of FFmpeg's demuxers, those of files that hold a video. A playlist (HLS, concat, …) would make it
# open other files, or other servers.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,m4v,h264,hevc,ivf,mxf"
CHUNK = 1 << 20
MOST_WAITING = 200  # requests, in a reader
BATCH = 32
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        megabytes: of the file.
        seconds: of the video.
        pixels: of a picture.
        frames: of the video.
        upload_seconds: for the file to arrive.
        work_seconds: from the file's arrival to the answer, waiting apart.
    """

    megabytes: int = 64
    seconds: int = 60
    pixels: int = 4096 * 2304
    frames: int = 3600
    upload_seconds: int = 120
    work_seconds: int = 120


@dataclass(frozen=True)
class Service:
    """What is served, and to whom.

    Attributes:
        model_name: what answers call the model.
        limits: of each request.
        allowed: locations that links may point below.
        token: what a request has to show; empty: nothing.
    """

    model_name: str
    limits: Limits
    allowed: tuple[str, ...] = ()
    token: str = ""


# ---- what an upload may cost ---------------------------------------------------------------------


def check_video(path: Path, limits: Limits, deadline: float) -> None:
    """Decode it once within the limits; what goes through may be read without them.

    Raises:
        InputError: not a video, too large or too long a one.
        TimeoutError: the deadline (`time.monotonic`) has passed.
    """
    options = {"max_pixels": str(limits.pixels), "format_whitelist": FORMATS}
    try:
        with av.open(str(path), "r", options=options) as container:
            if not container.streams.video:
                raise InputError("there is no video stream in it; give a video")
            stream = container.streams.video[0]
            _check_picture(stream.codec_context.width, stream.codec_context.height, limits)
            stream.codec_context.options = {"max_pixels": str(limits.pixels)}
            stream.codec_context.thread_count = 1
            for frames, frame in enumerate(container.decode(video=0), start=1):
                _check_picture(frame.width, frame.height, limits)
                if frames > limits.frames or (frame.time or 0) > limits.seconds:
                    raise InputError(
                        f"longer than {limits.seconds} s or {limits.frames} frames; cut it"
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError
    except av.error.FFmpegError as error:
        raise InputError(f"not a readable video ({error.strerror}); give a video file") from error


def _check_picture(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise InputError(f"{width} × {height}: more than {limits.pixels:,} pixels; scale it down")


def check_link(link: str, allowed: Sequence[str]) -> None:
    """Raises InputError: the link is not below a location that the operator allowed."""
    below = any(link.startswith(f"{place.rstrip('/')}/") for place in allowed)
    if not below or "://" not in link or any(p in ("", ".", "..") for p in link.split("/")[3:]):
        raise InputError(
            "this server reads no such link; the operator names what it reads with --allow"
        )


def check_token(credentials: HTTPAuthorizationCredentials | None, token: str) -> None:
    """Raises HTTPException: the server has a token, and a request did not show it."""
    given = credentials.credentials if credentials else ""
    if token and not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(401, "give the server's token: Authorization: Bearer TOKEN")


def _chunks_of_link(link: str) -> Iterator[bytes]:
    try:
        filesystem, name = pafs.FileSystem.from_uri(link)
        with filesystem.open_input_stream(name) as stream:
            while data := stream.read(CHUNK):
                yield data
    except (OSError, ValueError) as error:
        raise InputError("nothing readable at this link") from error


# ---- deployments ---------------------------------------------------------------------------------


def _keep_to_the_cluster() -> None:
    """To be called as a deployment is made, in each of its processes.

    Ray Serve opens a gRPC port there for its other processes, which takes pickled requests, so
    whoever reaches it can run code; and opens it at every address of the machine. From now on it
    does so at the node's own, which is loopback's where the cluster is this machine alone.
    """
    address = build_address(ray.util.get_node_ip_address(), 0)
    replica.add_port_to_grpc_server = lambda server, _: add_port_to_grpc_server(server, address)


@serve.deployment(name="network", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Network:
    """The network: clips that are there at the same time go through it together."""

    def __init__(self, predictor: Predictor, card: ModelCard) -> None:
        _keep_to_the_cluster()
        self._recognizer = Recognizer(predictor, card)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01)
    async def probabilities(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """Planes uint8 (T, C, S/2, S/2), several T → probabilities, float32 (classes,), of each."""
        answers: list[np.ndarray] = [np.empty(0)] * len(clips)
        for length in {len(planes) for planes in clips}:
            places = [n for n, planes in enumerate(clips) if len(planes) == length]
            found = self._recognizer.probabilities(np.stack([clips[n] for n in places]))
            for place, probabilities in zip(places, found, strict=True):
                answers[place] = probabilities
        return answers


class RemoteRecognizer(Recognizer):
    """A recogniser whose network is in another process."""

    def __init__(self, predictor: Predictor, card: ModelCard, network: DeploymentHandle) -> None:
        super().__init__(predictor, card)
        self._network = network

    def probabilities(self, planes: np.ndarray) -> np.ndarray:
        answers = [self._network.probabilities.remote(clip) for clip in planes]
        return np.stack([answer.result() for answer in answers])


api = FastAPI(
    title="cfer",
    description="Facial expressions from the residuals of a compressed video.",
    version="1",
)
_bearer = HTTPBearer(auto_error=False)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
Link = Annotated[str | None, Query(description="a video in storage that the operator allowed")]
_BODY = {
    "requestBody": {
        "description": "the video file itself; nothing where `link` is given",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@serve.deployment(name="reader", max_ongoing_requests=MOST_WAITING)
@serve.ingress(api)
class Reader:
    """Takes a video, answers with expressions or a picture of what the method sees. One at a time
    is worked on; the others wait, as files on the disk."""

    def __init__(
        self, service: Service, predictor: Predictor, card: ModelCard, network: DeploymentHandle
    ) -> None:
        _keep_to_the_cluster()
        self._service = service
        self._predictor, self._card = predictor, card
        self._recognizer = RemoteRecognizer(predictor, card, network)
        self._turn = asyncio.Lock()
        self._page = Path(__file__).with_name("serve.html").read_text()

    @api.get("/", include_in_schema=False)
    def page(self) -> HTMLResponse:
        return HTMLResponse(self._page)

    @api.get("/model")
    def model(self, credentials: Credentials) -> dict[str, Any]:
        """The model's classes and input, where it comes from, and what a request may cost."""
        self._check(credentials)
        return {
            "model": self._service.model_name,
            "limits": self._limits_text(),
            "request_limits": vars(self._service.limits),
            "classes": list(self._card.classes),
            "origin": self._card.origin,
        }

    @api.post("/predict", openapi_extra=_BODY)
    async def predict(
        self,
        request: Request,
        credentials: Credentials,
        link: Link = None,
        faces: Annotated[str, Query(pattern="^(one|all)$")] = "one",
        window_gops: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    ) -> dict[str, Any]:
        """Expressions of a video: one entry per window of time, and per face."""

        def work(path: Path, deadline: float) -> dict[str, Any]:
            windows = []
            for window in self._recognizer.predict_windows(
                path, faces=faces, window_gops=window_gops
            ):
                windows.append({**as_json(window), "source": "upload" if link is None else link})
                if time.monotonic() > deadline:
                    raise TimeoutError
            return {
                "model": self._service.model_name,
                "limits": self._limits_text(),
                "classes": list(self._card.classes),
                "windows": windows,
            }

        self._check(credentials)
        return await self._with_video(request, link, work)

    @api.post("/look", openapi_extra=_BODY, response_class=Response)
    async def look(
        self, request: Request, credentials: Credentials, link: Link = None, gop: int = 0
    ) -> Response:
        """What the method sees of one GOP, as a PNG: I-frame, residuals, motion, bytes."""

        def work(path: Path, deadline: float) -> bytes:
            from cfer.look import look_with

            name = self._service.model_name
            figure = look_with(path, None, gop, name, self._predictor, self._card)
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=90)
            return file.getvalue()

        self._check(credentials)
        png = await self._with_video(request, link, work)
        return Response(png, media_type="image/png")

    def _limits_text(self) -> str:
        return DEFAULT_LIMITS if self._service.model_name == DEFAULT else ""

    def _check(self, credentials: HTTPAuthorizationCredentials | None) -> None:
        check_token(credentials, self._service.token)

    async def _with_video(
        self, request: Request, link: str | None, work: Callable[[Path, float], Result]
    ) -> Result:
        """Take the video to disk, do the work on it when it is its turn, and leave nothing."""
        with tempfile.TemporaryDirectory(prefix="cfer-") as folder:
            path = Path(folder) / "video"
            try:
                async with asyncio.timeout(self._service.limits.upload_seconds):
                    await self._save(request, link, path)
                async with self._turn:
                    return await asyncio.to_thread(self._do, path, work)
            except InputError as error:
                raise HTTPException(422, str(error).replace(str(path), "the video")) from error
            except TimeoutError as error:
                raise HTTPException(408, "it takes too long; give a shorter video") from error

    async def _save(self, request: Request, link: str | None, path: Path) -> None:
        most = self._service.limits.megabytes * 1_000_000
        size = 0
        with open(path, "wb") as file:
            async for data in self._data(request, link):
                size += len(data)
                if size > most:
                    raise HTTPException(
                        413, f"more than {self._service.limits.megabytes} MB; give a shorter video"
                    )
                file.write(data)
        if size == 0:
            raise InputError("an empty upload; the request's body is the video file")

    async def _data(self, request: Request, link: str | None) -> AsyncIterator[bytes]:
        if link is None:
            async for data in request.stream():
                yield data
            return
        check_link(link, self._service.allowed)
        chunks = _chunks_of_link(link)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk

    def _do(self, path: Path, work: Callable[[Path, float], Result]) -> Result:
        deadline = time.monotonic() + self._service.limits.work_seconds
        check_video(path, self._service.limits, deadline)
        return work(path, deadline)


# ---- command -------------------------------------------------------------------------------------


def run(
    host: str, port: int, model: str, readers: int, allowed: Sequence[str], limits: Limits
) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        InputError: no such model; the port is taken; other machines can reach it, and no token is
            set.
    """
    from cfer.cluster import join_cluster

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token and not _is_loopback(host):
        raise InputError(
            f"--host {host}: other machines can reach it; set a token in {TOKEN_VARIABLE}, which "
            "requests then have to show"
        )
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--port {port}: cannot be used ({error.strerror})") from error
    predictor, card = open_model(model)
    join_cluster(for_training=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    service = Service(model, limits, tuple(allowed), token)
    network = Network.bind(predictor, card)  # type: ignore[attr-defined]
    reader = Reader.options(num_replicas=readers).bind(service, predictor, card, network)  # type: ignore[attr-defined]
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(reader, name="cfer", route_prefix="/")
        # Only now: Ray puts a handler of its own in their place, which aborts.
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        print(f"http://{host}:{port} serves the model {model}; its API: /docs", flush=True)
        stop.wait()
    finally:
        with contextlib.suppress(Exception):
            serve.delete("cfer")  # and nothing else that the cluster may serve
        ray.shutdown()
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
