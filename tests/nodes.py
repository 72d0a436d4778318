"""Machines on this machine: each a namespace of network, processes and mounts, on one switch.

A machine has an address and ports of its own, a /dev/shm of its own, and processes that see no
others'. Killed, all that runs on it is gone at once, as when the power fails. On such machines run
the nodes of a Ray cluster, and an MLflow server.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from helpers import NO_MLFLOW_JOBS, wait_for

NETWORK = "10.77.0.0/24"
# Runs as the machine's first process: everything else of it ends with this one. Children that lost
# their parents become its own, and are reaped by ignoring their end.
FIRST_PROCESS = (
    "mount -t tmpfs -o size=1g tmpfs /dev/shm && ip link set lo up && trap '' CHLD "
    "&& echo ready && exec sleep infinity"
)
BINARIES = Path(sys.executable).parent
NUM_NODES = 3
CPUS_PER_NODE = 2


class Forbidden(Exception):
    """This machine does not let us make machines on it."""


class Machine:
    """Starts at once; without an address until a network gives it one.

    To be made in the main thread: it is killed when the thread that made it ends, so that nothing
    is left of it even where pytest itself is killed.
    """

    def __init__(self) -> None:
        try:
            self._holder = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount-proc"]
                + ["--pid", "--fork", "--kill-child", "sh", "-c", FIRST_PROCESS],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise Forbidden(str(error)) from error
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise Forbidden(self._holder.communicate()[1].strip())
        (self.first_process,) = psutil.Process(self._holder.pid).children()
        self._namespace = os.readlink(f"/proc/{self.first_process.pid}/ns/pid")
        self.address = ""

    def command(self, *command: str, namespaces: Sequence[str] = ()) -> list[str]:
        """What runs this command there. Files are those of this machine."""
        entered = namespaces or ("--net", "--pid", "--mount")
        return ["nsenter", f"--target={self.first_process.pid}", *entered, "--", *command]

    def run(
        self, *command: str, namespaces: Sequence[str] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*command, namespaces=namespaces),
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )

    def reaches(self, address: str, port: int) -> bool:
        connect = f"</dev/tcp/{address}/{port}"
        return self.run("timeout", "2", "bash", "-c", connect).returncode == 0

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those whose command line has all these words in it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # ended meanwhile, or not ours to look at
                is_here = os.readlink(f"/proc/{process.pid}/ns/pid") == self._namespace
                if is_here and all(word in " ".join(process.cmdline()) for word in words):
                    found.append(process)
        return found

    @property
    def is_alive(self) -> bool:
        return self._holder.poll() is None

    def kill(self) -> None:
        """Every process, with its memory and its network, at once."""
        if self.is_alive:
            self.first_process.kill()
        # It ends after the last of the machine's processes.
        self._holder.communicate()


def environment(**more: str) -> dict[str, str]:
    """This one's, without proxies and what it says of other clusters and stores."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(("RAY_", "MLFLOW_"))
    }
    # A job's `python` is the one that is found where the cluster was started.
    return {**kept, "PATH": f"{BINARIES}:{os.environ['PATH']}", **more}


class Network:
    """A switch, the machines on it, and a folder that all of them share."""

    def __init__(self) -> None:
        # Ray's sockets lie in it, and their names must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="cfer-", dir="/tmp"))
        self.machines: list[Machine] = []
        try:
            self._switch = self._new_machine()
            self._ip(self._switch, "link add switch type bridge")
            self._ip(self._switch, "link set switch up")
        except Forbidden:
            self.close()
            raise

    def machine(self) -> Machine:
        """A new one, with an address of its own."""
        machine = self._new_machine()
        number = len(self.machines)
        port = f"port{number}"
        pid = machine.first_process.pid
        # Of the switch only the network is entered: process numbers are then those of this machine.
        self._ip(self._switch, f"link add {port} type veth peer name eth0 netns {pid}", "--net")
        self._ip(self._switch, f"link set {port} master switch up")
        machine.address = NETWORK.replace("0/24", str(number))
        self._ip(machine, f"address add {machine.address}/24 dev eth0")
        self._ip(machine, "link set eth0 up")
        return machine

    def close(self) -> None:
        for machine in self.machines:
            machine.kill()
        shutil.rmtree(self.folder)

    def _new_machine(self) -> Machine:
        self.machines.append(Machine())
        return self.machines[-1]

    @staticmethod
    def _ip(machine: Machine, command: str, *namespaces: str) -> None:
        done = machine.run("ip", *command.split(), namespaces=namespaces)
        if done.returncode:
            raise Forbidden(f"ip {command}: {done.stderr.strip()}")


class Cluster:
    """A Ray cluster of three nodes, and a machine beside it that jobs are submitted from."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": "",
            # How long a machine may be silent: Ray waits for a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "4000",
            "RAY_health_check_failure_threshold": "3",
        }
        self.client = network.machine()
        self.head = network.machine()
        self.workers: list[Machine] = []
        head = ("--head", f"--dashboard-host={self.head.address}", "--disable-usage-stats")
        with ThreadPoolExecutor() as pool:
            start = pool.submit(self._start_node, self.head, *head)
            # The other nodes need not wait until the dashboard is up as well.
            wait_for(lambda: start.done() or self.client.reaches(self.head.address, 6379))
            self.complete()
            start.result()

    def complete(self) -> None:
        """Replace the nodes that are gone."""
        self.workers = [worker for worker in self.workers if worker.is_alive]
        new = [self._network.machine() for _ in range(NUM_NODES - 1 - len(self.workers))]
        with ThreadPoolExecutor() as pool:
            address = f"--address={self.head.address}:6379"
            list(pool.map(lambda worker: self._start_node(worker, address), new))
        self.workers += new

    def _start_node(self, machine: Machine, *options: str) -> None:
        done = machine.run(
            *("ray", "start", *options, f"--node-ip-address={machine.address}"),
            *(f"--num-cpus={CPUS_PER_NODE}", f"--object-store-memory={100 * 2**20}"),
            f"--temp-dir={self._network.folder / machine.address}",
            **self._variables,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def submit(self, checkout: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
        """`ray job submit`, from the machine beside the cluster."""
        runtime = json.dumps({"env_vars": variables})
        return subprocess.Popen(
            self.client.command(
                *("ray", "job", "submit", f"--address=http://{self.head.address}:8265"),
                *(f"--runtime-env-json={runtime}", f"--working-dir={checkout}", "--", *command),
            ),
            env=environment(**self._variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def listed(self, what: str, *filters: str) -> list[dict[str, Any]]:
        """`ray list`: of nodes, actors or tasks."""
        done = self.client.run(
            *("ray", "list", what, f"--address=http://{self.head.address}:8265", "--detail"),
            *("--limit=10000", "--format=json"),
            *(part for each in filters for part in ("--filter", each)),
            **self._variables,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


class TrackingServer:
    """An MLflow server on a machine of its own, with its database and the artifacts."""

    def __init__(self, network: Network) -> None:
        machine = network.machine()
        self.uri = f"http://{machine.address}:5000"
        self._machine, self._log = machine, network.folder / "mlflow.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                machine.command(
                    *(sys.executable, "-m", "mlflow", "server", "--workers=1"),
                    f"--backend-store-uri=sqlite:///{network.folder / 'mlflow.db'}",
                    f"--artifacts-destination={network.folder / 'artifacts'}",
                    *(f"--host={machine.address}", "--port=5000"),
                ),
                env=environment(**NO_MLFLOW_JOBS),
                cwd=network.folder,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        """Until it answers: it is made to start while something else is done."""
        try:
            wait_for(lambda: self._machine.reaches(self._machine.address, 5000), self._process)
        except AssertionError as error:
            error.add_note(self._log.read_text())
            raise
