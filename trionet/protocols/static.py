"""Responders for files: `StaticFile` for one, `StaticFiles` for a directory.

What they send can be checked for freshness (ETag, Last-Modified) and asked for in parts (Range), and is looked
up anew for each request, so a changed file shows at once. `trionet.wire.conditions` has the table of answers.

Nothing here waits for a disk in the event loop, except for one `stat` of a file known already: files are
found and read in threads. Small ones are kept in memory within `cache_size`. Of a large one, a piece is read
when the peer has taken the one before, and no descriptor is held in between: slow readers hold no files open.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import PurePath
from typing import Final
from urllib.parse import unquote_to_bytes

import trio

from trionet.errors import ConfigurationError, Rejection
from trionet.protocols.responders import HttpRequest, Response
from trionet.protocols.websocket import http_date
from trionet.wire.conditions import judge
from trionet.wire.http1 import refuse

__all__ = ["StaticFile", "StaticFiles"]

_SMALL: Final = 65536  # bytes of the largest file kept in memory, and of a piece of a larger one
_RACY: Final = 2  # seconds after a change in which another might leave size and time as they are
_ENTRY: Final = 1024  # bytes counted for an entry of the cache besides its content
# What cannot be named, reached or read is not there; other errors are ours.
_MISSING: Final = frozenset(
    {errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM}
)

# First, because what `mimetypes` says depends on the machine: on some, scripts are text/plain.
_TYPES: Final = {
    ".avif": "image/avif",
    ".css": "text/css",
    ".csv": "text/csv",
    ".gif": "image/gif",
    ".htm": "text/html",
    ".html": "text/html",
    ".ico": "image/x-icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".webm": "video/webm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}


class _File:
    """A file as it was found: immutable."""

    __slots__ = ("body", "etag", "identity", "modified", "path", "size")

    def __init__(self, path: str, status: os.stat_result, body: bytes | None) -> None:
        self.path = path
        self.identity = _identity(status)
        self.size = status.st_size
        self.body = body  # None: too large to keep
        self.modified = int(status.st_mtime)
        if body is None:
            self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        else:  # the same on every server, and right however coarse the clock of the file system is
            self.etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'

    def is_current(self) -> bool:
        """Whether what is at `path` now is still this."""
        try:
            return _identity(os.stat(self.path)) == self.identity
        except OSError:
            return False

    async def pieces(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The content from `start` to `stop`, read as it is asked for. Raises `OSError` when the file has changed."""
        while start < stop:
            piece = await trio.to_thread.run_sync(self._read, start, min(_SMALL, stop - start))
            start += len(piece)
            yield piece

    def _read(self, offset: int, size: int) -> bytes:
        with _Opened(self.path) as (fd, status):
            os.lseek(fd, offset, os.SEEK_SET)
            piece = os.read(fd, size)
            if _identity(status) != self.identity or not piece:
                raise OSError(errno.ESTALE, "the file changed while it was sent", self.path)
            return piece


class _Static:
    """What both responders do: find, judge the conditions of the request, answer."""

    def __init__(
        self,
        cache_control: str,
        headers: Iterable[tuple[str, str]],
        content_type: str | None,
        cache_size: int,
    ) -> None:
        fixed = [("X-Content-Type-Options", "nosniff"), *headers]
        if cache_control:
            fixed.append(("Cache-Control", cache_control))
        self._headers = Response(headers=fixed).headers  # checks them
        self._content_type = content_type
        self._cache: dict[str, _File] = {}
        self._cached = 0
        self._cache_size = cache_size
        self._root = ""  # a file must be in here, whatever links lead to it; empty: anywhere

    async def _serve(self, request: HttpRequest, path: str) -> Response:
        file = self._cache.get(path)
        if file is None or not file.is_current():
            self._forget(path)
            file = await trio.to_thread.run_sync(self._find, path)
            self._remember(path, file)
        headers = [*self._headers, ("ETag", file.etag), ("Last-Modified", _last_modified(file))]
        size = file.size if request.method == "GET" else None
        verdict = judge(request.headers, file.etag, file.modified, size, now=time.time())
        if verdict.status == 412:
            return Response.text("The file is not what you think it is.\n", 412, headers)
        if verdict.status == 304:
            return Response(304, b"", headers)
        headers.append(("Accept-Ranges", "bytes"))
        if verdict.status == 416:
            headers.append(("Content-Range", f"bytes */{file.size}"))
            return Response.text("The file has no such part.\n", 416, headers)
        start, stop = 0, file.size
        if verdict.status == 206:
            start, stop = verdict.start, verdict.stop
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{file.size}"))
        kind = self._content_type or content_type(file.path)
        if file.body is not None:
            return Response(verdict.status, file.body[start:stop], headers, content_type=kind)
        pieces = file.pieces(start, stop)
        return Response(verdict.status, pieces, headers, content_type=kind, length=stop - start)

    def _find(self, path: str) -> _File:
        """Look at the disk; runs in a thread. Raises `Rejection`, `IsADirectoryError`, other `OSError`."""
        try:
            if self._root and not _within(os.path.realpath(path, strict=True), self._root):
                raise refuse(404, "There is nothing here.")
            with _Opened(path) as (fd, status):
                if status.st_size > _SMALL:
                    return _File(path, status, None)
                # What is read may be newer than `status`; then it is not found current the next time.
                return _File(path, status, os.read(fd, _SMALL))
        except OSError as error:
            if error.errno in _MISSING:
                raise refuse(404, "There is nothing here.") from error
            raise

    def _remember(self, path: str, file: _File) -> None:
        """Keep it, and drop those that have been in longest."""
        self._forget(path)  # another request may have found it meanwhile
        if time.time() - file.modified < _RACY:
            return
        self._cache[path] = file
        self._cached += _cost(file)
        while self._cached > self._cache_size and self._cache:
            self._forget(next(iter(self._cache)))

    def _forget(self, path: str) -> None:
        file = self._cache.pop(path, None)
        if file is not None:
            self._cached -= _cost(file)


class StaticFile(_Static):
    """Answers its route's path with one file; what is below that path is not found.

    `content_type`: by the name's ending when None. `cache_control`: by default a browser asks each time
    whether the file has changed. `headers`: added to each answer, such as
    ``[("Content-Security-Policy", "default-src 'self'")]``. Raises `ConfigurationError` without such a file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        content_type: str | None = None,
        cache_control: str = "no-cache",
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(cache_control, headers, content_type, _ENTRY + _SMALL)
        self._path = os.path.abspath(path)  # noqa: PTH100
        if not os.path.isfile(self._path):  # noqa: PTH113
            raise ConfigurationError(f"no such file: {os.fspath(path)!r}")

    async def __call__(self, request: HttpRequest) -> Response:
        """Answer with the file."""
        if request.rest:
            raise refuse(404, "There is nothing here.")
        return await self._serve(request, self._path)


class StaticFiles(_Static):
    """Answers what is below a prefix (``"/static/"``) with the files of a directory.

    A path that ends with a slash is answered with the `index` of that directory; without the slash it is
    redirected there. Nothing outside the directory is served, not through symbolic links either, and no name
    that begins with a dot except ``.well-known``. `cache_size`: bytes of small files kept in memory. The rest
    is as in `StaticFile`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        index: str = "index.html",
        cache_control: str = "no-cache",
        headers: Iterable[tuple[str, str]] = (),
        cache_size: int = 4 * 2**20,
    ) -> None:
        super().__init__(cache_control, headers, None, cache_size)
        self._root = os.path.realpath(directory)
        self._index = index
        if not os.path.isdir(self._root):  # noqa: PTH112
            raise ConfigurationError(f"no such directory: {os.fspath(directory)!r}")

    async def __call__(self, request: HttpRequest) -> Response:
        """Answer with the file that the rest of the path names."""
        names = list(map(_name, request.rest.split("/")[:-1]))
        last = request.rest.rpartition("/")[2]
        names.append(_name(last) if last else self._index)
        try:
            return await self._serve(request, os.path.join(self._root, *names))  # noqa: PTH118
        except IsADirectoryError:
            if not last:
                raise refuse(404, "There is nothing here.") from None
            query = f"?{request.query}" if request.query else ""
            raise Rejection(301, headers=[("Location", f"{request.path}/{query}")]) from None


def _name(segment: str) -> str:
    """One segment of a path as a name; 404 if it could be anything but a plain entry of its directory."""
    try:
        name = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        name = ""
    if (
        not name
        or (name[0] == "." and name != ".well-known")  # hidden, and "." and ".."
        or any(character in name for character in "/\\\0")
        or (os.name == "nt" and (":" in name or name[-1] in ". "))  # streams, and other spellings of a name
    ):
        raise refuse(404, "There is nothing here.")
    return name


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


class _Opened:
    """``with _Opened(path) as (fd, status)``: a regular file, opened for reading."""

    def __init__(self, path: str) -> None:
        # Not blocking: a named pipe would keep the thread until somebody writes to it.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        self._fd = os.open(path, flags)
        try:
            self._status = os.fstat(self._fd)
            if stat.S_ISDIR(self._status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if not stat.S_ISREG(self._status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
        except OSError:
            os.close(self._fd)
            raise

    def __enter__(self) -> tuple[int, os.stat_result]:
        return self._fd, self._status

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _cost(file: _File) -> int:
    return _ENTRY + len(file.body or b"")


def _last_modified(file: _File) -> str:
    # Never later than Date (RFC 9110, 8.8.2.1), though the file may claim so.
    return http_date(min(file.modified, time.time())).decode()


def content_type(path: str) -> str:
    """The media type that the ending of `path` stands for."""
    kind = _TYPES.get(os.path.splitext(path)[1].lower())  # noqa: PTH122
    if kind is None:
        import mimetypes

        kind, encoding = mimetypes.guess_type(PurePath(path).name)
        if kind is None or encoding is not None:  # "x.tar.gz" is to be saved as it is
            kind = "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
