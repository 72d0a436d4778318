"""cluster/: its files against their schemas, their commands against the programs' own parsers, and
what they keep to themselves."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from cluster_files import FILES, IN_PYTHON, SECRETS, commands_in, services, text_of
from command_lines import as_cfer, check_options
from helpers import REPOSITORY
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from cfer.predict.serve_on_ray import Arguments

# ---- schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "types", "workers"),
    [("ray-machines.yaml", {"local.cluster.node"}, 2), ("ray-aws.yaml", {"head", "worker"}, 4)],
)
def test_ray_up_takes_the_files(name, types, workers):
    config: dict[str, Any] = prepare_config(yaml.safe_load(text_of(name)))
    validate_config(config)
    assert set(config["available_node_types"]) == types
    assert config["max_workers"] == workers


def test_ray_serve_takes_the_file() -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text_of("serve.yaml")))
    (service,) = schema.applications
    module, _, function = service.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    arguments = Arguments.model_validate(service.args)
    assert arguments.model == "default"
    assert {deployment.name for deployment in service.deployments} == {"reader"}
    with pytest.raises(ValueError, match="readers"):
        Arguments.model_validate({**service.args, "readers": 2})


# The fields that the files use, looked up in KubeRay's API reference (ray.io/v1, KubeRay 1.6); its
# CRD is in no package. What pods are made of is Kubernetes' own, and checked by its schemas.
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


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("kuberay-cluster.yaml", ["RayCluster", "Deployment", "Service", "NetworkPolicy"]),
        ("kuberay-extract.yaml", ["RayJob"]),
        ("kuberay-train.yaml", ["RayJob"]),
    ],
)
def test_kubernetes_objects_keep_to_their_schemas(name, kinds):
    items = list(yaml.safe_load_all(text_of(name)))
    assert [item["kind"] for item in items] == kinds
    for item in items:
        if item["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(item, "1.37", strict=True)
            continue
        jsonschema.validate(item["spec"], _SPECS[item["kind"]])
        check_pod({"metadata": item["metadata"], "spec": {"containers": []}})
        if item["kind"] == "RayCluster":
            for group in [item["spec"]["headGroupSpec"], *item["spec"]["workerGroupSpecs"]]:
                check_pod(group["template"])


def check_pod(template: dict[str, Any]) -> None:
    item = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template}
    kubernetes_validate.validate(item, "1.37", strict=True)


def test_the_jobs_of_kubernetes_run_on_its_cluster():
    cluster, *_ = yaml.safe_load_all(text_of("kuberay-cluster.yaml"))
    for name in ("kuberay-extract.yaml", "kuberay-train.yaml"):
        job = yaml.safe_load(text_of(name))
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


# ---- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_command_and_path_is_there(name, monkeypatch):
    for command in commands_in(name):
        if Path(command[0]).name in IN_PYTHON:
            check_command(command, monkeypatch)
    for path in re.findall(
        r"(?<![\w./~$-])(?:cluster|pipeline|docs|tests)/[\w./-]*\w", text_of(name)
    ):
        assert (REPOSITORY / path).exists(), f"{name}: no {path}"


def check_command(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Raises what the program's own parser makes of a wrong option; AssertionError for the rest."""
    program, given = Path(words[0]).name, words[1:]
    if program == "ray":
        from ray.scripts.scripts import cli

        entry = check_click(cli, given).get("entrypoint")
        if entry:
            check_command(list(entry), patch)
    elif program == "serve":
        from ray.serve.scripts import cli

        check_click(cli, given)
    elif program == "mlflow":
        from mlflow.cli import cli

        check_click(cli, given)
    elif given[:2] != ["-m", "venv"] and given[0] not in ("-c", "-"):
        check_options(as_cfer(words), patch)


def check_click(group: click.Group, words: list[str]) -> dict[str, Any]:
    context = group.make_context(group.name, list(words))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None, name
    if isinstance(command, click.Group):
        return check_click(command, rest)
    return command.make_context(name, rest).params


def test_the_commands_are_found():
    """By file, so that none is passed over as a whole; and every program that can be asked."""
    without = ("serve.yaml", *(name for name in FILES if name.startswith("Dockerfile")))
    found = {name: commands_in(name) for name in FILES if name not in without}
    assert all(found.values())
    programs = {Path(command[0]).name for commands in found.values() for command in commands}
    assert programs == {"ray", "serve", "mlflow", "python", "cfer", "rclone", "weed"}
    # Ray is left before it is joined, on whatever machine it may run already.
    for name in ("ray-machines.yaml", "ray-aws.yaml"):
        ray = [command[1] for command in found[name] if Path(command[0]).name == "ray"]
        assert ray == ["stop", "start"] * 2


# ---- secrets -------------------------------------------------------------------------------------

_NAMES_SECRET = re.compile(r"(?i)(password|passwd|secret_?(access)?_?key|token|key_id|auth_key)$")


def literal_secrets(text: str) -> list[str]:
    """What looks like a secret that is written down: by its name, or by how it looks."""
    found = re.findall(
        r"\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{32,}\b", text
    )
    # NAME=value in shell, NAME: value in YAML. Fine are: a command or a variable, where that has no
    # default (`:-`), and a place to look it up.
    for secret, value in re.findall(r"([A-Za-z_]\w*)(?:=|: *(?:>-\s+)?)([^\s,;}]+[^\n]*)", text):
        if _NAMES_SECRET.search(secret):
            rest = re.sub(r"\$\(.*\)|\$\{\w+:\?[^}]*\}", "", value).strip("\"', ")
            if rest not in ("", "false") and secret != "key":
                found.append(f"{secret}: {value}")
    for user, password in re.findall(r"://([^/\s:@]+):([^\s@]+)@", text):
        if not re.fullmatch(r"\$\{\w+:\?[^}]*\}|[A-Z]+", password):
            found.append(f"{user}:{password}")
    return found


@pytest.mark.parametrize("name", FILES)
def test_no_secret_is_written_down(name):
    assert literal_secrets(text_of(name)) == []


@pytest.mark.parametrize("missing", SECRETS)
def test_compose_starts_nothing_without_its_secrets(missing):
    with pytest.raises(KeyError, match=missing):
        services({name: "given" for name in SECRETS if name != missing})


def test_containers_keep_to_themselves():
    compose = yaml.safe_load(text_of("compose.yaml"))
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "network_mode", "cap_add", "pid"}, name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)
    users = [line.split()[1] for line in text_of("Dockerfile").splitlines() if line[:5] == "USER "]
    assert users[-1].split(":")[0] not in ("root", "0")


def test_the_image_holds_what_the_package_is_built_from():
    """Installed the README's way: `pip install .`, of what .dockerignore lets through."""
    assert "pip install --no-cache-dir '.[cluster]'" in text_of("Dockerfile")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert "cluster" in project["optional-dependencies"]
    kept = [line[1:] for line in text_of("Dockerfile.dockerignore").splitlines() if line[:1] == "!"]
    assert {"cfer", "pipeline", "pyproject.toml", project["readme"]} <= set(kept)
    assert all((REPOSITORY / name).exists() for name in kept)
    for name in ("kuberay-cluster.yaml", "compose.yaml", "README.md"):
        for version in re.findall(r"cfer:(\d\S*\d)", text_of(name)):
            assert version == project["version"], name
