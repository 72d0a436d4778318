"""The service of `cfer serve` on a Ray cluster, by Ray Serve: `serve deploy cluster/serve.yaml`."""

from __future__ import annotations

import os

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve

from cfer.errors import InputError
from cfer.models import open_model
from cfer.serve import MOST_REQUESTS, TOKEN_VARIABLE, Service, create_app
from cfer.uploads import Limits, Model


class Arguments(BaseModel):
    """Of the configuration file; the names are those of `cfer serve`'s options."""

    model_config = ConfigDict(extra="forbid")

    model: str = "default"
    allow: list[str] = []
    max_megabytes: int = Limits.megabytes
    max_seconds: int = Limits.seconds
    time_limit: int = Limits.work_seconds
    memory_limit: int = Limits.memory_megabytes


def application(arguments: Arguments) -> serve.Application:
    """One reader to a replica. The token is that of the nodes' environment.

    Raises:
        InputError: no such model, or no token.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise InputError(
            f"{TOKEN_VARIABLE} is not set on the cluster's nodes, and other machines reach the "
            "service; set it before `ray start`"
        )
    limits = Limits.of(
        arguments.max_megabytes,
        arguments.max_seconds,
        arguments.time_limit,
        arguments.memory_limit,
    )
    model = Model(arguments.model, *open_model(arguments.model))
    service = Service(model, limits, allowed=tuple(arguments.allow), token=token)

    def build() -> FastAPI:
        return create_app(service)

    reader = serve.deployment(
        serve.ingress(build)(), name="reader", max_ongoing_requests=MOST_REQUESTS
    )
    return reader.bind()  # type: ignore[attr-defined]
