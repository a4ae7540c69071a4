"""A tar stream out of an engine, read as it comes: every file hashed on the way, nothing of it kept."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from typing import IO

from pytest_imagefresh.core.content import EXECUTABLE, PLAIN, SPECIAL, SYMLINK, File
from pytest_imagefresh.core.errors import EvidenceError

FILE_LIMIT = 500_000
"""How many files one archive may hold: what is kept of it is their names."""

_CHUNK = 1 << 20
_END = 1024
"""Bytes of the two empty blocks that end an archive. Source: POSIX pax, ustar interchange format."""
_OWNER_EXECUTES = 0o100


def read_archive(chunks: Iterable[bytes], subject: str) -> dict[str, File]:
    """Return the files of an archive of one folder: path relative to the folder -> file. Folders are left out.

    `chunks` is the archive as it arrives; errors of theirs pass through. `subject` names the archive in messages. The
    path of an archive that holds no folder but a single file is "". Raises EvidenceError for anything that is not a
    whole archive.
    """
    source = _Source(chunks)
    try:
        with tarfile.open(
            fileobj=source, mode="r|", bufsize=_CHUNK, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            files = _read_files(archive, subject)
            source.drain()
            # Between members tarfile takes a broken header for the end, and a stream that breaks off there, too.
            if source.end_of_data > archive.offset or source.size < archive.offset + _END:
                raise tarfile.ReadError(f"it ends, or breaks, after {archive.offset} bytes")
            return files
    except (tarfile.TarError, ValueError) as error:
        raise EvidenceError(
            f"the engine's archive of {subject} cannot be read: {error}; expected a whole tar archive; run again"
        ) from error


class _Source(io.RawIOBase):
    """A file to read once, out of chunks, that knows where its data ends and the padding begins."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__()
        self._chunks = iter(chunks)
        self._rest = b""
        self.size = 0
        """Bytes so far."""
        self.end_of_data = 0
        """Where the bytes that are not zero end."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, `size` at most; b"" at the end."""
        if not self._rest:
            self._rest = self._next()
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def _next(self) -> bytes:
        for chunk in self._chunks:
            data = chunk.rstrip(b"\0")
            if data:
                self.end_of_data = self.size + len(data)
            self.size += len(chunk)
            if chunk:
                return chunk
        return b""

    def drain(self) -> None:
        """Read to the end."""
        self._rest = b""
        while self._next():
            pass


def _read_files(archive: tarfile.TarFile, subject: str) -> dict[str, File]:
    """Return the files of an archive by path below its first name, which is that of the folder."""
    files: dict[str, File] = {}
    for member in archive:
        # tarfile keeps every member of a stream, and would grow with it.
        archive.members = []  # type: ignore[attr-defined]
        if member.isdir():
            continue
        path = _below_root(member.name)
        if path in files or len(files) >= FILE_LIMIT:
            raise EvidenceError(
                f"the engine's archive of {subject} holds {path!r} twice or more than {FILE_LIMIT} files; expected "
                "each file once; declare smaller folders"
            )
        files[path] = _read_file(archive, member, files)
    return files


def _below_root(name: str) -> str:
    return name.partition("/")[2]


def _read_file(archive: tarfile.TarFile, member: tarfile.TarInfo, files: dict[str, File]) -> File:
    """Return one file. A hard link stands for a file that came before it."""
    if member.islnk():
        first = files.get(_below_root(member.linkname))
        if first is None:
            raise tarfile.ReadError(f"{member.name!r} is a link to {member.linkname!r}, which did not come before it")
        return first
    if member.issym():
        target = os.fsencode(member.linkname)
        return File(SYMLINK, _blob(io.BytesIO(target), len(target)))
    content = archive.extractfile(member) if member.isreg() else None
    if content is None:
        return File(SPECIAL, "")
    return File(EXECUTABLE if member.mode & _OWNER_EXECUTES else PLAIN, _blob(content, member.size))


def _blob(content: IO[bytes], size: int) -> str:
    """Return the ID that git gives to these bytes. Raises ReadError where there are not as many as announced."""
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    left = size
    while data := content.read(_CHUNK):
        blob.update(data)
        left -= len(data)
    if left:
        raise tarfile.ReadError(f"a file ends {left} bytes early")
    return blob.hexdigest()
