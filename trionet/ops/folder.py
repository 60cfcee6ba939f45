"""The folder where a supervisor's children find each other: nobody else may enter it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from trionet.ops.sockets import private_folder

__all__ = ["Folder"]

_LOOK: Final = 10.0  # seconds between looks whether what is in it is still there


class Folder:
    """A private folder, and the sockets in it: `control` is where workers find the admin process, if there is one.

    Cleaners of temporary folders go by age, so it is kept young; and what was removed nevertheless can be made anew.
    """

    def __init__(self) -> None:
        self.path = private_folder()
        self.control_path = f"{self.path}/control"
        self.control: socket.socket | None = None
        self.look_at = time.monotonic() + _LOOK  # when it is to be looked after

    def due(self, now: float) -> bool:
        """Whether it is time to look after what is in it; says so once."""
        if now < self.look_at:
            return False
        self.look_at = now + _LOOK
        with suppress(OSError):
            os.utime(self.path)
        return True

    @staticmethod
    def has(path: str) -> bool:
        """Whether the file is still there; then it is young again."""
        try:
            os.utime(path)
        except OSError:
            return False
        return True

    def renew(self) -> None:
        """Make the folder again, unless it is there. Raises `OSError`; also if it is somebody else's now."""
        with suppress(FileExistsError):
            Path(self.path).mkdir(0o700)
        found = os.lstat(self.path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, f"{self.path} now belongs to somebody else")

    def open_control(self) -> None:
        """Listen for workers, and no more at the socket there was. Raises `OSError`."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            control.bind(self.control_path)
            control.listen(1024)
        except BaseException:
            control.close()
            raise
        if self.control is not None:
            self.control.close()
        self.control = control

    def remove(self) -> None:
        """Close the control socket, and remove the folder."""
        if self.control is not None:
            self.control.close()
        shutil.rmtree(self.path, ignore_errors=True)
