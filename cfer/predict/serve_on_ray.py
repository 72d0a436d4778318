"""The service of `cfer serve` on a Ray cluster, by Ray Serve: `serve deploy cluster/serve.yaml`."""

# No `from __future__ import annotations`: Ray inspects the type of the argument.
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve

from cfer.errors import InputError
from cfer.predict.limits import Limits
from cfer.predict.recognizer import Recognizer
from cfer.predict.serve import MOST_REQUESTS, TOKEN_VARIABLE, checked_token, create_app
from cfer.predict.uploads import Workers, check_allowed


class Arguments(BaseModel):
    """The `args` of the configuration file, named as the options of `cfer serve`."""

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
        InputError: no such model, no token, or links allowed to something that is not a store.
    """
    token = checked_token()
    if not token:
        raise InputError(
            f"{TOKEN_VARIABLE} is not set on the cluster's nodes, and other machines reach the "
            "service; set it before `ray start`"
        )
    limits = Limits.of(**arguments.model_dump(exclude={"model", "allow"}))
    check_allowed(arguments.allow)
    recognizer = Recognizer.from_pretrained(arguments.model)

    def build() -> FastAPI:
        workers = Workers(recognizer, limits, arguments.allow)
        return create_app(arguments.model, workers, token)

    reader = serve.deployment(
        serve.ingress(build)(),
        name="reader",
        max_ongoing_requests=MOST_REQUESTS,
        max_queued_requests=MOST_REQUESTS,
    )
    return reader.bind()  # type: ignore[attr-defined]
