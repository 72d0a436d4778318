"""cluster/: its files against their schemas and the code, and its services, run.

What compose would start in containers is started as processes here, by the very command lines and
environments of cluster/compose.yaml: 127.0.0.1 stands for the hosts' names, a folder for a volume.
"""

from __future__ import annotations

import csv
import http.client
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
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
from botocore.exceptions import ClientError
from helpers import (
    NO_MLFLOW_JOBS,
    REPOSITORY,
    find_postgres,
    free_ports,
    is_open,
    kill_with_children,
    wait_for,
)
from mlflow.tracking import MlflowClient
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_NAME

from cfer.shards import verify
from cfer.storage import Folder

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


def test_ray_up_finds_what_it_starts_machines_with(s3_bucket, monkeypatch, tmp_path):
    """What `ray up` asks AWS before it starts a machine, and the start, of a server of its API."""
    monkeypatch.setenv("HOME", str(tmp_path))  # a new key pair is written to ~/.ssh
    (tmp_path / ".ssh").mkdir()
    boto3.client("iam").create_instance_profile(InstanceProfileName="cfer")
    config = _bootstrap_config(check_ray_up(text_of("ray-aws.yaml")), no_config_cache=True)
    worker = config["available_node_types"]["worker"]
    assert worker["resources"]["CPU"] == 8  # it knows the type of machine
    AWSNodeProvider(config["provider"], config["cluster_name"]).create_node(
        dict(worker["node_config"]), {TAG_RAY_NODE_NAME: "one"}, 1
    )
    (started,) = boto3.client("ec2").describe_instances()["Reservations"]
    assert started["Instances"][0]["InstanceLifecycle"] == "spot"
    assert started["Instances"][0]["IamInstanceProfile"]["Arn"].endswith("/cfer")


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


# ---- commands ------------------------------------------------------------------------------------

# Programs whose command lines are parsed by the very parser that they run with, …
PARSED = ("ray", "mlflow", "rclone", "weed", "python", "cfer")
# … and those that are not here to ask: of these only the files are looked for.
TAKEN_AS_GIVEN = ("docker", "kubectl", "useradd")


def shell_texts(name: str, text: str) -> list[str]:
    """The shell commands of a file, a text for each place that has some."""
    if name.endswith(".md"):
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        return [re.sub(r"<< END\n.*?^END$", "", block, flags=re.M | re.S) for block in blocks]
    if name.endswith(".sh"):
        return [re.sub(r"<< 'END'\n.*?^END$", "", text, flags=re.M | re.S)]
    if name.startswith("Dockerfile"):
        return [line[4:] for line in text.replace("\\\n", " ").splitlines() if line[:4] == "RUN "]
    found = []

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict):
            if "command" in node and "args" in node:  # of one container
                node = node | {"command": node["command"] + node["args"], "args": None}
            for name, value in node.items():
                walk(value, name)
        elif key.endswith("_commands"):
            found.extend(node)
        elif key in ("command", "entrypoint", "test"):
            found.append(node if isinstance(node, str) else shlex.join(node))
        elif isinstance(node, list):
            for value in node:
                walk(value, key)

    for document in yaml.safe_load_all(interpolate(text, dict.fromkeys(SECRETS, "given"))):
        walk(document, "")
    return found


def commands_of(text: str) -> Iterator[list[str]]:
    """Each command of PARSED in a shell text, whatever starts it (`srun`, `sbatch`, `setsid`)."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("#"):
            continue
        # What a variable or a substitution stands for: any value.
        line = re.sub(r"\$\(\(.*?\)\)|\$\{[\w#:/]+\}|\$\w+|\$[@!#]", "1", line)
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if re.fullmatch(r"[();<>|&]+", word):
                if command and command[0] not in TAKEN_AS_GIVEN:
                    starts = [n for n, w in enumerate(command) if Path(w).name in PARSED]
                    if starts:
                        yield command[starts[0] :]
                command = []
            else:
                command.append(word)


def check_command(words: list[str]) -> None:
    """Raises what the program's own parser makes of a wrong option; AssertionError for the rest."""
    program, given = Path(words[0]).name, words[1:]
    if program == "ray":
        from ray.scripts.scripts import cli

        entry = check_click(cli, given).get("entrypoint")
        if entry:
            check_command(list(entry))
    elif program == "mlflow":
        from mlflow.cli import cli

        check_click(cli, given)
    elif program == "rclone":
        pages = [run_tool("rclone", given[0], "--help"), run_tool("rclone", "help", "flags")]
        known = "".join(page.stdout for page in pages)
        for option in (word for word in given if word.startswith("-")):
            assert re.search(rf"^\s+(-\w, )?{option.split('=')[0]}\b", known, re.M), option
    elif program == "weed":
        known = run_tool("weed", given[0], "-h").stderr
        for option in given[1:]:
            assert re.search(rf"^\s+{re.escape(option.split('=')[0])}(\s|$)", known, re.M), option
    elif program == "cfer":
        from cfer.cli import build_parser

        build_parser().parse_args(given)
    elif given[0] == "-m":
        check_module(given[1], given[2:])
    elif given[0] not in ("-c", "-"):
        assert (REPOSITORY / given[0]).is_file(), f"no file {given[0]}"
        check_module(given[0].removesuffix(".py").replace("/", "."), given[1:])


def check_click(group: click.Group, words: list[str]) -> dict[str, Any]:
    context = group.make_context(group.name, list(words))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None, name
    if isinstance(command, click.Group):
        return check_click(command, rest)
    return command.make_context(name, rest).params


def check_module(name: str, words: list[str]) -> None:
    if name == "venv":
        return
    assert importlib.util.find_spec(name) is not None, f"no module {name}"
    module = importlib.import_module(name)
    if hasattr(module, "build_parser"):
        module.build_parser().parse_args(words)
    else:  # its parser is in its main(), which reads nothing before it has parsed
        done = subprocess.run(
            [sys.executable, "-m", name, *words, "--help"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def check_commands(name: str, text: str) -> list[str]:
    """Check each command and each path of a file → the programs in the order of its commands."""
    programs = []
    for command in (c for shell in shell_texts(name, text) for c in commands_of(shell)):
        check_command(command)
        programs.append(" ".join([Path(command[0]).name, command[1]]))
    for path in re.findall(r"(?<![\w./~$-])(?:cluster|pipeline|docs|tests)/[\w./-]*\w", text):
        assert (REPOSITORY / path).exists(), f"{name}: no {path}"
    return programs


START = ["ray stop", "mlflow server", "ray start", "ray stop", "ray start"]
COMMANDS = {
    "README.md": [
        *("rclone copy", "ray up", "ray attach", "ray down", "ray up", "ray attach", "ray down"),
        *("ray job", "ray job", "mlflow server", "python pipeline/extract.py", "python -m"),
        *("python -m", "python -m", "cfer report"),
    ],
    "compose.yaml": ["weed server", "mlflow server", "ray start", "ray health-check", "ray start"],
    "ray-machines.yaml": START,
    "ray-aws.yaml": START,
    "kuberay-cluster.yaml": ["mlflow server"],
    "kuberay-extract.yaml": ["python -m"],
    "kuberay-train.yaml": ["python -m"],
    "slurm.sh": ["python -c", "ray start", "ray health-check", "ray start", "python -"],
    "Dockerfile": [],
    "Dockerfile.dockerignore": [],
}


@pytest.mark.parametrize("name", FILES)
def test_every_command_and_path_is_there(name):
    assert check_commands(name, text_of(name)) == COMMANDS[name]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("README.md", "extract.py --videos $", "extract.py --vidoes $"),
        ("README.md", "pipeline/extract.py", "pipeline/extracts.py"),
        ("README.md", "python -m cfer.train", "python -m cfer.trains"),
        ("README.md", "--method min-min", "--methods min-min"),
        ("README.md", "--s3-env-auth", "--s3-environment-auth"),
        ("README.md", "--port-forward 8265", "--forward 8265"),
        ("README.md", "cluster/ray-aws.yaml", "cluster/ray-amazon.yaml"),
        ("README.md", "cfer report cfer", "cfer reports cfer"),
        ("README.md", "cfer.shards verify", "cfer.shards verfy"),
        ("compose.yaml", "--artifacts-destination", "--artifact-destination"),
        ("compose.yaml", "-s3.ip.bind", "-s3.ip.binds"),
        ("compose.yaml", "ray start --block", "ray start --blocking"),
        ("compose.yaml", "health-check", "healthcheck"),
        ("ray-machines.yaml", "ray start --head", "ray start --heads"),
        ("ray-aws.yaml", "mlflow server --host", "mlflow server --hosts"),
        ("kuberay-cluster.yaml", "--allowed-hosts", "--allow-hosts"),
        ("kuberay-extract.yaml", "--out", "--output"),
        ("kuberay-train.yaml", "min-min", "min-min-min"),
        ("slurm.sh", "--ray-client-server-port", "--client-server-port"),
    ],
)
def test_a_spoilt_command_is_found(name, old, new):
    text = text_of(name)
    assert old in text
    with pytest.raises((click.ClickException, AssertionError, SystemExit)):
        check_commands(name, text.replace(old, new))


# ---- secrets -------------------------------------------------------------------------------------

_NAMES_SECRET = re.compile(r"(?i)(password|passwd|secret_?(access)?_?key|token|key_id|auth_key)$")


def literal_secrets(name: str, text: str) -> list[str]:
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
    assert literal_secrets(name, text_of(name)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RAY_AUTH_TOKEN: ${RAY_AUTH_TOKEN:?see cluster/README.md}", "RAY_AUTH_TOKEN: letmein"),
        ("RAY_AUTH_TOKEN:?see", "RAY_AUTH_TOKEN:-see"),
        ("POSTGRES_PASSWORD: $", "POSTGRES_PASSWORD: x$"),
        ("//mlflow:${POSTGRES_PASSWORD:?see cluster/README.md}@", "//mlflow:mlflow@"),
    ],
)
def test_a_secret_that_is_written_down_is_found(old, new):
    text = text_of("compose.yaml")
    assert old in text
    assert literal_secrets("compose.yaml", text.replace(old, new))


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


def test_the_image_holds_what_the_package_is_built_from(tmp_path):
    """Installed the README's way: `pip install .`, of what .dockerignore lets through."""
    assert "pip install --no-cache-dir '.[server]'" in text_of("Dockerfile")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert "server" in project["optional-dependencies"]
    kept = [line[1:] for line in text_of("Dockerfile.dockerignore").splitlines() if line[:1] == "!"]
    assert {"cfer", "pipeline", "pyproject.toml", project["readme"]} <= set(kept)
    assert all((REPOSITORY / name).exists() for name in kept)
    for name in ("kuberay-cluster.yaml", "compose.yaml", "README.md"):
        for version in re.findall(r"cfer:(\d\S*\d)", text_of(name)):
            assert version == project["version"], name


# ---- the services --------------------------------------------------------------------------------


def interpolate(text: str, environment: dict[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?message}`, as compose puts them in. Raises KeyError."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if environment.get(name):
            return environment[name]
        if operator == ":-":
            return rest
        raise KeyError(f"{name}: {rest}")

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


@dataclass
class Service:
    command: list[str]
    environment: dict[str, str]
    health: list[str]


def services(environment: dict[str, str]) -> dict[str, Service]:
    """The services of cluster/compose.yaml, with these variables in the environment."""
    compose = yaml.safe_load(interpolate(text_of("compose.yaml"), environment))
    found = {}
    for name, service in compose["services"].items():
        command = service.get("entrypoint") or service["command"]
        found[name] = Service(
            shlex.split(command) if isinstance(command, str) else command,
            {key: str(value) for key, value in service.get("environment", {}).items()},
            service.get("healthcheck", {}).get("test", [])[1:],
        )
    return found


class Lab:
    """The services of the compose file, as processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        names = ("POSTGRES", "S3", "MLFLOW", "RAY", "DASHBOARD")
        self.ports = ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.secrets = {name: os.urandom(16).hex() for name in SECRETS}
        given = {f"{name}_PORT": str(port) for name, port in ports.items()} | self.secrets
        self.services = services(given)

    def here(self, text: str) -> str:
        """The same, on this machine: hosts are 127.0.0.1, a volume is a folder."""
        hosts = "|".join([*self.services, r"0\.0\.0\.0"])
        text = re.sub(rf"(^|[@/=])({hosts})(?=:\d+(/|$))", r"\g<1>127.0.0.1", text)
        text = re.sub(r"^(-\S+=)?0\.0\.0\.0$", r"\g<1>127.0.0.1", text)
        return text.replace("=/store", f"={self.folder}/store")

    def environment(self, name: str) -> dict[str, str]:
        own = {key: self.here(value) for key, value in self.services[name].environment.items()}
        path = f"{BIN}:{os.environ['PATH']}"
        here = {"PATH": path, "HOME": str(self.folder), "OMP_NUM_THREADS": "1", **NO_MLFLOW_JOBS}
        return here | own

    def start(
        self, name: str, programs: Path = BIN, more: dict[str, str] | None = None, **options: Any
    ) -> None:
        command = [self.here(word) for word in self.services[name].command]
        if name.startswith("ray-"):
            # Its usual port, of which each container has one, may be another Ray's of this machine.
            command.append("--dashboard-agent-listen-port=0")
        self.processes[name] = subprocess.Popen(
            [str(programs / command[0]), *command[1:]],
            env=self.environment(name) | (more or {}),
            cwd=self.folder,
            stdout=(self.folder / f"{name}.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )

    def wait_for(self, name: str, programs: Path = BIN, port: int = 0) -> None:
        """Until its health check of the compose file says so, or until it listens."""
        check = [self.here(word) for word in self.services[name].health]
        environment = self.environment(name) | {"PGHOST": "127.0.0.1"}

        def is_up() -> bool:
            assert self.processes[name].poll() is None, "it has ended"
            if port:
                return is_open(port)
            command = [str(programs / check[0]), *check[1:]]
            done = subprocess.run(command, env=environment, capture_output=True, check=False)
            return done.returncode == 0

        try:
            wait_for(is_up)
        except AssertionError as error:
            error.add_note((self.folder / f"{name}.log").read_text())
            raise

    def stop(self) -> None:
        # The store would wait for ten seconds, a node of Ray for its work, and the database for its
        # clients to leave.
        for name, process in self.processes.items():
            if name.startswith("ray-") and process.poll() is None:
                kill_with_children(process)
        signals = {"s3": signal.SIGKILL, "postgres": signal.SIGINT}
        for name, process in self.processes.items():
            process.send_signal(signals.get(name, signal.SIGTERM))
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """PostgreSQL, the S3 store and the MLflow server of the compose file."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("no PostgreSQL server here (apt-get install postgresql)")
    # Not pytest's folder: PostgreSQL's user, who is not root, has to reach its own.
    folder = Path(tempfile.mkdtemp(prefix="cfer-"))
    lab = Lab(folder)
    try:
        folder.chmod(0o755)
        (folder / "store").mkdir()
        _make_database(lab, programs)
        lab.start("s3")
        lab.wait_for("postgres", programs)
        _psql(lab, "CREATE DATABASE mlflow", "postgres")
        lab.start("mlflow")
        lab.wait_for("s3", port=lab.ports["S3"])
        lab.wait_for("mlflow", port=lab.ports["MLFLOW"])
        yield lab
    finally:
        lab.stop()
        shutil.rmtree(folder)


def _make_database(lab: Lab, programs: Path) -> None:
    """What the entry point of PostgreSQL's image does with its environment, and the server."""
    asked = lab.services["postgres"].environment
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    database, password = lab.folder / "postgres", lab.folder / "password"
    database.mkdir()
    password.write_text(asked["POSTGRES_PASSWORD"])
    if user:
        shutil.chown(database, user["user"], user["group"])
    done = subprocess.run(
        [
            *(str(programs / "initdb"), f"--pgdata={database}", "--auth=scram-sha-256"),
            *(f"--username={asked['POSTGRES_USER']}", f"--pwfile={password}", "--no-sync"),
            "--encoding=UTF8",
        ],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        **user,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (database / "postgresql.conf").open("a") as settings:
        settings.write("unix_socket_directories = ''\n")
    lab.start("postgres", programs, more={"PGDATA": str(database)}, **user)


def _psql(lab: Lab, statement: str, database: str = "mlflow") -> list[tuple[Any, ...]]:
    asked = lab.services["postgres"].environment
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=lab.ports["POSTGRES"],
        user=asked["POSTGRES_USER"],
        password=asked["POSTGRES_PASSWORD"],
        dbname=database,
    )
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def store_client(lab: Lab, secret: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{lab.ports['S3']}",
        region_name="us-east-1",
        aws_access_key_id=lab.secrets["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret,
    )


def test_a_run_is_in_postgresql_and_its_files_in_the_store(lab, tmp_path):
    address = f"http://127.0.0.1:{lab.ports['MLFLOW']}"
    client = MlflowClient(address)
    run_id = client.create_run(client.create_experiment("lab"), run_name="first").info.run_id
    client.log_metric(run_id, "accuracy", 0.75)
    client.log_text(run_id, "what the run has to say", "notes/words.txt")
    client.set_terminated(run_id)
    rows = _psql(
        lab,
        "SELECT name, status, key, value, artifact_uri FROM runs JOIN metrics USING (run_uuid) "
        f"WHERE run_uuid = '{run_id}'",
    )
    assert [row[:4] for row in rows] == [("first", "FINISHED", "accuracy", 0.75)]
    # The server hands them on, so that a client needs no key of the store.
    assert rows[0][4].startswith("mlflow-artifacts:/")
    words = client.download_artifacts(run_id, "notes/words.txt", str(tmp_path))
    assert Path(words).read_text() == "what the run has to say"
    store = store_client(lab, lab.secrets["AWS_SECRET_ACCESS_KEY"])
    (found,) = [
        item["Key"]
        for item in store.list_objects_v2(Bucket="cfer", Prefix="mlflow/")["Contents"]
        if run_id in item["Key"]
    ]
    assert store.get_object(Bucket="cfer", Key=found)["Body"].read() == b"what the run has to say"


def test_the_services_turn_strangers_away(lab):
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(
            host="127.0.0.1", port=lab.ports["POSTGRES"], user="mlflow", password="mlflow"
        )
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        store_client(lab, "another").list_objects_v2(Bucket="cfer")
    # A page of the web that names this machine; and the containers, which name the service.
    for host, status in (("elsewhere.example", 403), ("mlflow:5000", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", lab.ports["MLFLOW"], timeout=60)
        path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
        connection.request("GET", path, headers={"Host": host})
        assert connection.getresponse().status == status, host
        connection.close()


def test_shards_go_to_the_store(lab, monkeypatch, drawn_shards):
    """cfer's own way to S3, and the README's line that copies a folder into the store."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{lab.ports['S3']}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, lab.secrets[name])
    (line,) = re.findall(r"^rclone copy videos .*$", text_of(PAGE), re.M)
    line = line.replace(" videos ", f" {drawn_shards} ").replace("8333", str(lab.ports["S3"]))
    subprocess.run([BIN / "rclone", *shlex.split(line)[1:]], check=True, cwd=lab.folder)
    assert verify("s3://cfer/videos") == []
    folder = Folder("s3://cfer/notes")
    folder.write("words", b"one")
    folder.write("words", b"two" * 4_000_000)  # longer than one part of an upload
    assert (folder.names(), folder.read("words")) == (["words"], b"two" * 4_000_000)
    folder.delete("words")
    assert folder.names() == []


def test_jobs_of_the_cluster_end_in_the_store_and_in_mlflow(lab, drawn_videos):
    """Ray's head and a worker; the README's two jobs, of eight small clips and one epoch."""
    few = lab.folder / "manifest.csv"
    rows = list(csv.DictReader((drawn_videos / "manifest.csv").open()))
    rows = [row for row in rows if row["subject"] < "S005" and row["label"] in ("anger", "fear")]
    with few.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"path": drawn_videos / row["path"]} for row in rows)
    for name in ("ray-head", "ray-worker"):
        # Not where a `ray.init()` of this machine looks for a cluster.
        lab.start(name, more={"RAY_TMPDIR": str(lab.folder)})
        if name == "ray-head":
            lab.wait_for(name)
    address = f"http://127.0.0.1:{lab.ports['DASHBOARD']}"

    def submit(line: str, token: str = lab.secrets["RAY_AUTH_TOKEN"]) -> tuple[int, str]:
        command = line.replace("http://127.0.0.1:8265", address).replace("$CFER_STORE", "s3://cfer")
        done = subprocess.run(
            shlex.split(command),
            cwd=REPOSITORY,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": token,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    extract, train = re.findall(r"^ray job submit .*$", text_of(PAGE), re.M)
    extract = extract.replace("$CFER_STORE/videos/manifest.csv", str(few))
    extract += " --size 64 --identity dlib --clips-per-shard 2"
    train = train.replace("--folds 5", "--epochs 1")
    deadline = time.monotonic() + 300
    while True:
        status, output = submit(extract, token="another")
        if "invalid or incorrect" in output:
            break
        assert time.monotonic() < deadline, output
    assert status != 0
    while True:
        status, output = submit(extract)
        # The head is healthy before its agent can start a job.
        if "No available agent" not in output:
            break
        assert time.monotonic() < deadline, output
    assert status == 0, output
    assert "8 clips" in output
    status, output = submit(train)
    assert status == 0, output
    assert _psql(lab, "SELECT status FROM runs WHERE name = 'cv'") == [("FINISHED",)]
    store = store_client(lab, lab.secrets["AWS_SECRET_ACCESS_KEY"])
    keys = [item["Key"] for item in store.list_objects_v2(Bucket="cfer")["Contents"]]
    assert {"shards/dataset.json", "runs/cv/results.json"} <= set(keys)
    assert any(re.fullmatch(r"mlflow/.*/model\.safetensors", key) for key in keys)
