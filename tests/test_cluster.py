"""cluster/: its files against their schemas and the code, and its services, run.

What compose would start in containers is started as processes here, by the very command lines and
environments of cluster/compose.yaml; for the name of a host stands 127.0.0.1, for a volume a folder.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import click
import jsonschema
import kubernetes_validate
import psycopg2
import pytest
import yaml
from conftest import REPOSITORY
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = REPOSITORY / "cluster"
BIN = Path(sys.executable).parent
PAGE = "README.md"
FILES = sorted(path.name for path in CLUSTER.iterdir())
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD", "RAY_AUTH_TOKEN")


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text()


# ---- schemas -------------------------------------------------------------------------------------


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]], capture_output=True, text=True, check=False
    )


def check_ray_up(text: str) -> dict[str, Any]:
    """What `ray up` does with a file before it starts a machine."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


# The fields of KubeRay's API reference (ray.io/v1, KubeRay 1.6) that the files use: what is not here
# is not a field, or nobody has looked it up. The pods are Kubernetes' own business, see `check_pod`.
def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}
_GROUP = {"rayStartParams": _TEXTS, "template": {"type": "object"}}
_SPECS = {
    "RayCluster": _object(
        ["headGroupSpec"],
        rayVersion={"type": "string"},
        authOptions=_object([], mode={"enum": ["disabled", "token"]}),
        headGroupSpec=_object(["template"], **_GROUP),
        workerGroupSpecs={
            "type": "array",
            "items": _object(
                ["groupName", "template"],
                groupName={"type": "string"},
                replicas=_COUNT,
                minReplicas=_COUNT,
                maxReplicas=_COUNT,
                **_GROUP,
            ),
        },
    ),
    "RayJob": _object([], entrypoint={"type": "string"}, clusterSelector=_TEXTS),
}


def check_kubernetes(text: str) -> list[str]:
    """The kinds of the objects in a file; every one keeps to its schema."""
    kinds = []
    for item in yaml.safe_load_all(text):
        kinds.append(item["kind"])
        if item["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(item, "1.37", strict=True)
            continue
        jsonschema.validate(item["spec"], _SPECS[item["kind"]])
        check_pod({"metadata": item["metadata"], "spec": {"containers": []}})
        if item["kind"] == "RayCluster":
            groups = [item["spec"]["headGroupSpec"], *item["spec"]["workerGroupSpecs"]]
            for group in groups:
                check_pod(group["template"])
    return kinds


def check_pod(template: dict[str, Any]) -> None:
    item = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template}
    kubernetes_validate.validate(item, "1.37", strict=True)


def check_compose(path: Path) -> None:
    done = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(path))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "types", "workers"),
    [("ray-machines.yaml", {"local.cluster.node"}, 2), ("ray-aws.yaml", {"head", "worker"}, 4)],
)
def test_ray_up_takes_the_files(name, types, workers):
    config = check_ray_up(text_of(name))
    assert set(config["available_node_types"]) == types
    assert config["max_workers"] == workers


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("setup_commands:", "setup_comands:"),
        ("max_workers: 4\nidle", "max_workers: four\nidle"),
        ("head_node_type: head", "head_node_type: hed"),
    ],
)
def test_ray_up_refuses_a_spoilt_file(old, new):
    assert old in text_of("ray-aws.yaml")
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check_ray_up(text_of("ray-aws.yaml").replace(old, new))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("kuberay-cluster.yaml", ["RayCluster", "Deployment", "Service", "NetworkPolicy"]),
        ("kuberay-extract.yaml", ["RayJob"]),
        ("kuberay-train.yaml", ["RayJob"]),
    ],
)
def test_kubernetes_objects_keep_to_their_schemas(name, kinds):
    assert check_kubernetes(text_of(name)) == kinds


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("authOptions:", "authOption:"),
        ("mode: token", "mode: tokens"),
        ("runAsNonRoot", "runAsNotRoot"),
        ("secretKeyRef: {name", "secretKeyRef: {nam"),
        ("replicas: 2", "replicas: two"),
        ("containerPort: 5000", "containerPort: http"),
    ],
)
def test_a_spoilt_kubernetes_object_is_found(old, new):
    text = text_of("kuberay-cluster.yaml")
    assert old in text
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_kubernetes(text.replace(old, new, 1))


def test_the_compose_file_keeps_to_its_schema(tmp_path):
    check_compose(CLUSTER / "compose.yaml")
    spoilt = tmp_path / "compose.yaml"
    spoilt.write_text(text_of("compose.yaml").replace("depends_on:", "depend_on:"))
    with pytest.raises(AssertionError, match="depend_on"):
        check_compose(spoilt)


def test_linters_have_nothing_to_say(tmp_path):
    for tool, name, spoil in (
        ("hadolint", "Dockerfile", "RUN cd /tmp && sudo ls\n"),
        ("shellcheck", "slurm.sh", "echo $unquoted$1\n"),
    ):
        done = run_tool(tool, str(CLUSTER / name))
        assert done.returncode == 0, done.stdout
        spoilt = tmp_path / name
        spoilt.write_text(text_of(name) + spoil)
        assert run_tool(tool, str(spoilt)).returncode != 0
    assert os.access(CLUSTER / "slurm.sh", os.X_OK)
