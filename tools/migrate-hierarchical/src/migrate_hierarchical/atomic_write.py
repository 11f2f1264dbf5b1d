"""Replaces a file completely or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat

FLAGS = os.O_WRONLY | getattr(os, "O_BINARY", 0)


def write_atomically(path: str, data: bytes) -> None:
    """Write a new file with the same mode and owner, flush it to disk, rename it over the old one; raises OSError."""
    target = os.path.realpath(path)
    status = os.stat(target)
    if not os.access(target, os.W_OK):
        raise PermissionError(13, "Permission denied", path)
    temporary = os.path.join(os.path.dirname(target), f".migrate-hierarchical-{secrets.token_hex(8)}")
    try:
        if not write_nameless(temporary, data, status):
            handle = os.open(temporary, FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fill(handle, data, status)
            finally:
                os.close(handle)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_nameless(path: str, data: bytes, status: os.stat_result) -> bool:
    """Write a file that has no name until it is complete; False if the system does not support that.

    A process that is killed while it writes leaves nothing behind.
    """
    try:
        handle = os.open(os.path.dirname(path), FLAGS | os.O_TMPFILE, 0o600)
    except (AttributeError, OSError):  # not every system and file system has O_TMPFILE
        return False
    try:
        fill(handle, data, status)
        try:
            # with a src_dir_fd, which the absolute path leaves unused, os.link follows the link in /proc
            os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle)
        except OSError:  # no /proc, or the file system cannot link it afterwards
            return False
    finally:
        os.close(handle)
    return True


def fill(handle: int, data: bytes, status: os.stat_result) -> None:
    """Write the bytes, mode and owner of a new file, and flush it to disk."""
    with open(handle, "wb", closefd=False) as file:
        file.write(data)
    with contextlib.suppress(OSError, AttributeError):
        os.fchown(handle, status.st_uid, status.st_gid)
    if hasattr(os, "fchmod"):  # after chown, which clears some mode bits
        os.fchmod(handle, stat.S_IMODE(status.st_mode))
    os.fsync(handle)
