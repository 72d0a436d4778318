"""A folder of results, on a local disk or an object store, with writes that are all or nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pyarrow.fs as pafs

from cfer.errors import InputError


def absolute_location(location: str) -> str:
    """A URI as it is; a local path made absolute, for processes with other working directories."""
    return location if "://" in location else os.path.abspath(location)


class Folder:
    """A folder named by a local path or by a URI that Arrow knows (`s3://bucket/prefix`, ...).

    A reader never sees half a file: on a local disk a file is written beside its target, synced,
    and renamed over it; on an object store one PUT makes it visible when it is complete.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        if "://" in self.location:
            try:
                self.filesystem, self.path = pafs.FileSystem.from_uri(self.location)
            except (ValueError, OSError) as error:
                raise InputError(f"{self.location}: not a usable location ({error})") from error
        else:
            self.filesystem = pafs.LocalFileSystem()
            self.path = os.path.abspath(self.location)
        self._is_local = isinstance(self.filesystem, pafs.LocalFileSystem)

    def name_of(self, name: str) -> str:
        """What to call a file of this folder in a message."""
        return f"{self.location.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        return info.type == pafs.FileType.File

    def names(self) -> list[str]:
        """The names of the files directly in this folder, sorted; none where there is no folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.File)

    def read(self, name: str) -> bytes:
        """Raises InputError where there is no such file."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                return stream.read()
        except FileNotFoundError as error:
            raise InputError(f"{self.name_of(name)}: there is no such file") from error

    def write(self, name: str, data: bytes) -> None:
        """Replace a file atomically."""
        target = f"{self.path}/{name}"
        if not self._is_local:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        os.makedirs(self.path, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def delete(self, name: str) -> None:
        if self.exists(name):
            self.filesystem.delete_file(f"{self.path}/{name}")
