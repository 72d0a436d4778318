"""`cfer serve`: its options, without what takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from cfer.predict.limits import Limits


def main(argv: Sequence[str] | None = None) -> int:
    return tyro.cli(serve, prog="cfer serve", args=argv)


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    model: str = "default",
    readers: int = 1,
    allow: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    max_megabytes: int = Limits.megabytes,
    max_seconds: int = Limits.seconds,
    time_limit: int = Limits.work_seconds,
    memory_limit: int = Limits.memory_megabytes,
) -> int:
    """Serve predictions over HTTP until Ctrl-C.

    There is a page to drop a video on, POST /predict and POST /look, and /openapi.json, which
    describes them. If other machines can reach the server, requests have to show the token that is
    in CFER_TOKEN.

    Args:
        host: address to listen at
        port: port to listen at; 0 for any that is free
        model: `default`, a .safetensors file, the name or id of a training run, runs:/ID/model, or
            models:/NAME/VERSION
        readers: number of videos that are worked on at a time
        allow: links may point below this location, such as s3://bucket/videos
        max_megabytes: refuse a larger file
        max_seconds: refuse a longer video
        time_limit: seconds of work on a video, not counting the wait for a reader
        memory_limit: MB of memory for the work on a video, in addition to what the model takes
    """
    limits = Limits.of(max_megabytes, max_seconds, time_limit, memory_limit)
    from cfer.predict.serve import run

    return run(host, port, model, readers, allow, limits)
