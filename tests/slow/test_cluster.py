"""cluster/ with other people's programs: what they say of its files, and its services, run.

What compose would start in containers is started as processes here, by the very command lines and
environments of cluster/compose.yaml: 127.0.0.1 stands for the hosts' names, a folder for a volume.
"""

from __future__ import annotations

import http.client
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg2
import pytest
import yaml
from cluster_files import CLUSTER, FILES, PAGE, SECRETS, WITH_HELP, commands_in, services, text_of
from helpers import (
    NO_MLFLOW_JOBS,
    find_postgres,
    free_ports,
    is_loopback,
    is_open,
    kill_with_children,
    listening,
    wait_for,
)
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.tags import TAG_RAY_NODE_NAME

from cfer.data.shards import read_description, verify
from cfer.data.storage import Folder

BIN = Path(sys.executable).parent


# ---- files ---------------------------------------------------------------------------------------


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "command",
    [
        ("check-jsonschema", "--builtin-schema=vendor.compose-spec", str(CLUSTER / "compose.yaml")),
        ("hadolint", str(CLUSTER / "Dockerfile")),
        ("shellcheck", str(CLUSTER / "slurm.sh")),
    ],
    ids=lambda command: command[0],
)
def test_linters_have_nothing_to_say(command):
    done = run_tool(*command)
    assert done.returncode == 0, done.stdout


def test_the_slurm_script_can_be_started():
    assert os.access(CLUSTER / "slurm.sh", os.X_OK)


def test_rclone_and_weed_know_the_options_that_they_are_given():
    """The commands of other programs: tests/unit/test_cluster.py."""
    asked = set()
    for program, name, *given in (command for file in FILES for command in commands_in(file)):
        if Path(program).name not in WITH_HELP:
            continue
        asked.add(program)
        if program == "rclone":
            pages = [run_tool(program, name, "--help"), run_tool(program, "help", "flags")]
            known, option_of = "".join(page.stdout for page in pages), r"^\s+(-\w, )?{}\b"
        else:
            known, option_of = run_tool(program, name, "-h").stderr, r"^\s+{}(\s|$)"
        for option in (word.split("=")[0] for word in given if word.startswith("-")):
            assert re.search(option_of.format(re.escape(option)), known, re.M), option
    assert asked == set(WITH_HELP)


def test_ray_up_finds_what_it_starts_machines_with(s3_bucket, monkeypatch, tmp_path):
    """What `ray up` asks AWS before it starts a machine, and the start, of a server of its API."""
    monkeypatch.setenv("HOME", str(tmp_path))  # a new key pair is written to ~/.ssh
    (tmp_path / ".ssh").mkdir()
    boto3.client("iam").create_instance_profile(InstanceProfileName="cfer")
    given = prepare_config(yaml.safe_load(text_of("ray-aws.yaml")))
    config = _bootstrap_config(given, no_config_cache=True)
    worker = config["available_node_types"]["worker"]
    assert worker["resources"]["CPU"] == 8  # it knows the type of machine
    AWSNodeProvider(config["provider"], config["cluster_name"]).create_node(
        dict(worker["node_config"]), {TAG_RAY_NODE_NAME: "one"}, 1
    )
    (started,) = boto3.client("ec2").describe_instances()["Reservations"]
    assert started["Instances"][0]["InstanceLifecycle"] == "spot"
    assert started["Instances"][0]["IamInstanceProfile"]["Arn"].endswith("/cfer")


# ---- the services --------------------------------------------------------------------------------


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

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

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

    def wait_until_healthy(self, name: str, programs: Path = BIN) -> None:
        """Its health check of the compose file says so."""
        check = [self.here(word) for word in self.services[name].health]
        environment = self.environment(name) | {"PGHOST": "127.0.0.1"}
        command = [str(programs / check[0]), *check[1:]]
        self._wait_for(
            name,
            lambda: subprocess.run(command, env=environment, capture_output=True).returncode == 0,
        )

    def wait_until_open(self, name: str, port: str) -> None:
        self._wait_for(name, lambda: is_open(self.ports[port]))

    def _wait_for(self, name: str, is_up: Callable[[], bool]) -> None:
        try:
            wait_for(is_up, self.processes[name])
        except AssertionError as error:
            error.add_note((self.folder / f"{name}.log").read_text())
            raise

    def family(self, *names: str) -> list[psutil.Process]:
        roots = [psutil.Process(self.processes[name].pid) for name in names]
        return [*roots, *(child for root in roots for child in root.children(recursive=True))]

    def submit(self, line: str, token: str) -> tuple[int, str]:
        """A `ray job submit` of the page → its exit status, and what it said."""
        command = line.replace("http://127.0.0.1:8265", self.address("DASHBOARD"))
        done = subprocess.run(
            shlex.split(command.replace("$CFER_STORE", "s3://cfer")),
            cwd=self.folder / "checkout",
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

    def stop(self) -> None:
        # The database would wait for its clients to leave, and the others for their work.
        for name, process in self.processes.items():
            if process.poll() is None and name != "postgres":
                kill_with_children(process)
        if "postgres" in self.processes:
            self.processes["postgres"].send_signal(signal.SIGINT)
            self.processes["postgres"].wait()


@pytest.fixture(scope="module")
def lab(checkout: Path) -> Iterator[Lab]:
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
        (folder / "checkout").symlink_to(checkout)
        _make_database(lab, programs)
        lab.start("s3")
        lab.wait_until_healthy("postgres", programs)
        _psql(lab, "CREATE DATABASE mlflow", "postgres")
        lab.start("mlflow")
        lab.wait_until_open("s3", "S3")
        lab.wait_until_open("mlflow", "MLFLOW")
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


def test_the_jobs_of_the_cluster_end_in_the_store_and_in_mlflow(lab, drawn_videos, monkeypatch):
    """The page's lines: the videos are brought to the store, extracted by Ray's head and a worker,
    and trained on, for one epoch."""
    # What is not said to listen to the other containers, does not.
    addresses = listening(lab.family("postgres", "s3", "mlflow"))
    assert len(addresses) >= 3
    assert all(is_loopback(address) for address, _ in addresses), addresses
    # A page of the web that names this machine; and the containers, which name the service.
    for host, status in (("elsewhere.example", 403), ("mlflow:5000", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", lab.ports["MLFLOW"])
        path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
        connection.request("GET", path, headers={"Host": host})
        assert connection.getresponse().status == status, host
        connection.close()

    monkeypatch.setenv("AWS_ENDPOINT_URL", lab.address("S3"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, lab.secrets[name])
    (line,) = re.findall(r"^rclone copy videos .*$", text_of(PAGE), re.M)
    line = line.replace(" videos ", f" {drawn_videos} ").replace("8333", str(lab.ports["S3"]))
    subprocess.run([BIN / "rclone", *shlex.split(line)[1:]], check=True, cwd=lab.folder)

    for name in ("ray-head", "ray-worker"):
        # Not where a `ray.init()` of this machine looks for a cluster.
        lab.start(name, more={"RAY_TMPDIR": str(lab.folder)})
        if name == "ray-head":
            lab.wait_until_healthy(name)
    lab.wait_until_open("ray-head", "DASHBOARD")
    extract, train = re.findall(r"^ray job submit .*$", text_of(PAGE), re.M)
    extract += " --size 64 --identity dlib --clips-per-shard 5 --actors 2"
    train = train.replace("--folds 5", "--epochs 1")
    done: list[tuple[int, str]] = []

    def submit(token: str, until: Callable[[str], bool]) -> tuple[int, str]:
        """Again, as long as the head is not so far that it can answer, or start a job."""

        def is_answered() -> bool:
            done.append(lab.submit(extract, token))
            return until(done[-1][1])

        wait_for(is_answered, lab.processes["ray-head"])
        return done[-1]

    assert submit("another", lambda output: "invalid or incorrect" in output)[0] != 0
    token = lab.secrets["RAY_AUTH_TOKEN"]
    status, output = submit(token, lambda output: "No available agent" not in output)
    assert status == 0, output
    assert "10 clips" in output
    assert verify("s3://cfer/shards") == []
    assert read_description("s3://cfer/shards").counts["clips"] == 10

    status, output = lab.submit(train, token)
    assert status == 0, output
    # The server hands files on, so that a client needs no key of the store.
    ((ended, artifacts),) = _psql(lab, "SELECT status, artifact_uri FROM runs WHERE name = 'cv'")
    assert ended == "FINISHED"
    assert artifacts.startswith("mlflow-artifacts:/")
    names = Folder("s3://cfer").names_below()
    assert "runs/cv/results.json" in names
    assert any(re.fullmatch(r"mlflow/.*/model\.safetensors", name) for name in names)


def test_folders_in_the_store_of_the_compose_file(lab, monkeypatch):
    """cfer's own way to S3, at another server than that of the other tests."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", lab.address("S3"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, lab.secrets[name])
    folder = Folder("s3://cfer/notes")
    folder.write("words", b"one")
    folder.write("words", b"two" * 4_000_000)  # longer than one part of an upload
    assert (folder.names(), folder.read("words")) == (["words"], b"two" * 4_000_000)
    folder.delete("words")
    assert folder.names() == []
