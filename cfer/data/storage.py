"""Files and folders on a local disk or in an object store: written whole or not at all, and asked
for again while a store is out of order."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pyarrow.fs as pafs
import tenacity

from cfer.errors import InputError

log = logging.getLogger(__name__)

# An object store that gives no answer, or one of these, is asked again for so long.
PATIENCE_SECONDS = 600
_OUT_OF_ORDER = re.compile(
    r"INTERNAL_FAILURE|SLOW_DOWN|SERVICE_UNAVAILABLE|THROTTLING|NETWORK_CONNECTION|REQUEST_TIMEOUT"
    r"|HTTP status (429|5\d\d)"
)
# Arrow itself gives a request up after 3 s without a byte, which no slow store can keep to.
_S3_OPTIONS = {"request_timeout": 60.0, "connect_timeout": 10.0, "allow_delayed_open": True}
# The AWS SDK doubles its wait, from 25 ms: this many come to PATIENCE_SECONDS, and no more.
_ATTEMPTS = int(math.log2(PATIENCE_SECONDS / 0.025 + 1)) + 1
_CHUNK_BYTES = 8 << 20

T = TypeVar("T")


class StorageError(InputError):
    """A disk or a store that can't be written or is out of order; no single clip is at fault."""


def is_uri(location: str | Path) -> bool:
    return "://" in str(location)


def below(location: str, name: str) -> str:
    """The path or URI of a file or folder in the folder at `location`."""
    if not is_uri(location):
        return f"{location.rstrip('/')}/{name}"
    folder, mark, options = location.partition("?")
    return f"{folder.rstrip('/')}/{quote(name)}{mark}{options}"


def absolute_location(location: str) -> str:
    """A URI as it is; a local path made absolute, for processes with other working directories."""
    return location if is_uri(location) else os.path.abspath(location)


class Folder:
    """A folder named by a local path or by a URI that Arrow knows (`s3://`, `gs://`, ...).

    A reader never sees half a file: on a local disk a file is written beside its target, synced,
    and renamed over it; an object store shows it once it is complete. While a store is out of order
    (HTTP 5xx and 429, no answer) it is asked again, for up to `PATIENCE_SECONDS`.

    Attributes:
        path: the folder's path within its store.
        is_local: whether the store is this machine's disk.

    Raises:
        InputError: the URI names no store that can be used.
        StorageError: from every method, if the store stays out of order.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        if is_uri(self.location):
            self.filesystem, self.path = _open_uri(self.location)
        else:
            self.filesystem = pafs.LocalFileSystem()
            self.path = os.path.abspath(self.location)
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)

    def name_of(self, name: str = "") -> str:
        """What messages call this folder, or a file in it: its location without any keys."""
        shown = self.location
        if is_uri(shown):
            shown = re.sub("//[^/]*@", "//", shown.partition("?")[0])
        return f"{shown.rstrip('/')}/{name}".rstrip("/")

    def location_of(self, name: str) -> str:
        return below(self.location, name)

    def folder(self, name: str) -> Folder:
        """A folder in this one, without opening the store again."""
        inner = copy.copy(self)
        inner.location, inner.path = self.location_of(name), f"{self.path}/{name}"
        return inner

    @cached_property
    def patient_filesystem(self) -> pafs.FileSystem:
        """For other libraries that read below `path`: it waits as long as the folder does."""
        if isinstance(self.filesystem, pafs.S3FileSystem):
            return _s3(self.location, self.filesystem.region, is_patient=True)
        return self.filesystem

    def exists(self, name: str) -> bool:
        info = self._ask(name, self.filesystem.get_file_info, f"{self.path}/{name}")
        return bool(info.type == pafs.FileType.File)

    def names(self) -> list[str]:
        """The names of the files directly in this folder, sorted; none if there is no folder."""
        return [info.base_name for info in self._files()]

    def folder_names(self) -> list[str]:
        """The names of the folders directly in this folder that have files in them, sorted."""
        # Found by their files: not every store lists folders.
        return sorted({name.split("/")[0] for name in self.names_below() if "/" in name})

    def names_below(self) -> list[str]:
        """The files in this folder and all below it, relative to it, sorted."""
        start = len(self.path.rstrip("/")) + 1
        return [info.path[start:] for info in self._files(recursive=True)]

    def read(self, name: str) -> bytes:
        """A file's bytes; raises as `chunks` does."""
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's bytes in pieces of 8 MiB.

        Raises:
            InputError: there is no such file, or it may not be read.
        """
        try:
            with self._ask(name, self.filesystem.open_input_file, f"{self.path}/{name}") as file:
                size = file.size()
                for start in range(0, size, _CHUNK_BYTES):
                    count = min(_CHUNK_BYTES, size - start)
                    yield self._ask(name, file.read_at, count, start)
        except FileNotFoundError as error:
            raise InputError(f"{self.name_of(name)}: there is no such file") from error
        except OSError as error:
            raise InputError(
                f"{self.name_of(name)}: cannot be read ({_reason(error)}); correct its permissions"
            ) from error

    def write(self, name: str, data: bytes) -> None:
        """Replace a file atomically.

        Raises:
            StorageError: it can't be written; the file is as it was before.
        """
        try:
            if self.is_local:
                self._write_locally(name, data)
            else:
                self._ask(name, self._put, f"{self.path}/{name}", data)
        except OSError as error:
            raise StorageError(
                f"{self.name_of(name)}: cannot be written ({_reason(error)}); free some space or "
                "correct its permissions, and start again: what is finished is kept"
            ) from error

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        self._ask(name, self._delete, f"{self.path}/{name}")

    def delete_folder(self, name: str) -> None:
        """Delete a folder in this one, with everything in it."""
        if self.is_local:
            self.filesystem.delete_dir(f"{self.path}/{name}")
            return
        for file in self.folder(name).names_below():
            self.delete(f"{name}/{file}")

    def _files(self, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        infos = self._ask("", self.filesystem.get_file_info, selector)
        files = [info for info in infos if info.type == pafs.FileType.File]
        return sorted(files, key=lambda info: info.path)

    def _delete(self, path: str) -> None:
        # A store may fail after it has deleted the file; asked again, it finds none.
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(path)

    def _put(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def _write_locally(self, name: str, data: bytes) -> None:
        os.makedirs(self.path, exist_ok=True)
        temporary = Path(self.path, f".{name}.{uuid.uuid4().hex}.tmp")
        try:
            # The umask decides who may read it: pictures of faces are not for everyone.
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, f"{self.path}/{name}")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _ask(self, name: str, what: Callable[..., T], *arguments: Any) -> T:
        """The store's answer, as soon as it is in order."""
        where = self.name_of(name)

        def say(state: tenacity.RetryCallState) -> None:
            assert state.outcome is not None
            reason = _reason(state.outcome.exception())
            log.warning("%s: the store is out of order, asking again (%s)", where, reason)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_out_of_order),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
            stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
            before_sleep=say,
        )
        try:
            return retrying(what, *arguments)
        except tenacity.RetryError as error:
            last = error.last_attempt.exception()
            raise StorageError(
                f"{where}: the store is out of order ({_reason(last)}); start again when it is "
                "not: what is finished is kept"
            ) from last


def _open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    there, mark, options = uri.partition("?")
    if options and there.startswith("file:"):
        raise InputError(f"{uri}: a file has no options; write ? as %3F")
    # People write names as they are: a space is not an error, and no part of a name may get lost.
    there = quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", there), safe="%/:@!$&'()*+,;=[]~")
    try:
        filesystem, path = pafs.FileSystem.from_uri(f"{there}{mark}{options}")
    except (ValueError, OSError) as error:
        raise InputError(f"{uri}: not a usable location ({error})") from error
    if isinstance(filesystem, pafs.S3FileSystem):
        filesystem = _s3(uri, filesystem.region, is_patient=False)
    return filesystem, path


def _s3(uri: str, region: str, is_patient: bool) -> pafs.S3FileSystem:
    """The store that this URI and the environment describe; InputError: an unknown option."""
    parts = urlsplit(uri)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    scheme, _, host = endpoint.rpartition("://")
    options: dict[str, Any] = {
        "region": region,
        "scheme": given.pop("scheme", scheme or "https"),
        "endpoint_override": given.pop("endpoint_override", host.rstrip("/")) or None,
        "access_key": unquote(parts.username) if parts.username else None,
        "secret_key": unquote(parts.password) if parts.password else None,
    }
    given.pop("region", None)
    if given:
        raise InputError(
            f"{uri}: {', '.join(given)} is not an option; give only region, scheme and "
            "endpoint_override"
        )
    if is_patient:
        options["retry_strategy"] = pafs.AwsDefaultS3RetryStrategy(max_attempts=_ATTEMPTS)
    return pafs.S3FileSystem(**options, **_S3_OPTIONS)


def _is_out_of_order(error: BaseException) -> bool:
    return isinstance(error, OSError) and _OUT_OF_ORDER.search(str(error)) is not None


def _reason(error: BaseException | None) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]


def folder_of(location: str | Path) -> tuple[Folder, str]:
    """The folder that a file or a folder is in, and its name there."""
    if not is_uri(location):
        path = Path(os.path.abspath(location))
        return Folder(path.parent), path.name
    there, mark, options = str(location).partition("?")
    parent, _, name = there.rstrip("/").rpartition("/")
    return Folder(f"{parent}{mark}{options}"), unquote(name)


@contextlib.contextmanager
def local_copy(location: str) -> Iterator[Path]:
    """A file, or a folder with the files directly in it, on this disk.

    The copy of what is in an object store lasts as long as the context. A local path is given as it
    is, whether or not anything is there.

    Raises:
        InputError: the store has nothing of this name.
    """
    if not is_uri(location):
        yield Path(location)
        return
    folder, name = folder_of(location)
    with tempfile.TemporaryDirectory(prefix="cfer-") as temporary:
        # Its own name may be anything; only the suffix, which says what it is, is kept.
        copy = Path(temporary) / f"clip{Path(name).suffix}"
        if folder.exists(name):
            _download(folder, name, copy)
        else:
            pictures = folder.folder(name)
            names = pictures.names()
            if not names:
                raise InputError(f"{folder.name_of(name)}: there is no such file or folder")
            copy.mkdir()
            for file in names:
                _download(pictures, file, copy / file)
        yield copy


def _download(folder: Folder, name: str, path: Path) -> None:
    with open(path, "wb") as stream:
        for chunk in folder.chunks(name):
            stream.write(chunk)
