"""What is written in cluster/: its texts, the commands in them, the services of compose.yaml."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from helpers import REPOSITORY

CLUSTER = REPOSITORY / "cluster"
PAGE = "README.md"
FILES = sorted(path.name for path in CLUSTER.iterdir())
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD", "RAY_AUTH_TOKEN")
# Programs that can be asked whether they know an option: those in Python by their own parsers, …
IN_PYTHON = ("ray", "serve", "mlflow", "python", "cfer")
# … the others by their help.
WITH_HELP = ("rclone", "weed")
# And those that are not here to ask.
TAKEN_AS_GIVEN = ("docker", "kubectl", "useradd")


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text()


def commands_in(name: str) -> list[list[str]]:
    """Each command of IN_PYTHON and WITH_HELP in a file of cluster/, in its order."""
    return [command for text in _shell_texts(name, text_of(name)) for command in _commands_of(text)]


def _shell_texts(name: str, text: str) -> list[str]:
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

    for document in yaml.safe_load_all(_interpolate(text, dict.fromkeys(SECRETS, "given"))):
        walk(document, "")
    return found


def _commands_of(text: str) -> Iterator[list[str]]:
    """The commands of a shell text, whatever starts them (`srun`, `sbatch`, `setsid`)."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("#"):
            continue
        # What a variable or a substitution stands for: any value.
        line = re.sub(r"\$\(\(.*?\)\)|\$\{[\w#:/]+\}|\$\w+|\$[@!#]", "1", line)
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if not re.fullmatch(r"[();<>|&]+", word):
                command.append(word)
                continue
            if command and command[0] not in TAKEN_AS_GIVEN:
                known = [n for n, w in enumerate(command) if Path(w).name in IN_PYTHON + WITH_HELP]
                if known:
                    yield command[known[0] :]
            command = []


@dataclass
class Service:
    command: list[str]
    environment: dict[str, str]
    health: list[str]


def services(environment: Mapping[str, str]) -> dict[str, Service]:
    """The services of cluster/compose.yaml, with these variables in the environment.

    Raises:
        KeyError: a variable that has to be given, and is not.
    """
    compose = yaml.safe_load(_interpolate(text_of("compose.yaml"), environment))
    found = {}
    for name, service in compose["services"].items():
        command = service.get("entrypoint") or service["command"]
        found[name] = Service(
            shlex.split(command) if isinstance(command, str) else command,
            {key: str(value) for key, value in service.get("environment", {}).items()},
            service.get("healthcheck", {}).get("test", [])[1:],
        )
    return found


def _interpolate(text: str, environment: Mapping[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?message}`, as compose puts them in."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if environment.get(name):
            return environment[name]
        if operator == ":-":
            return rest
        raise KeyError(f"{name}: {rest}")

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)
