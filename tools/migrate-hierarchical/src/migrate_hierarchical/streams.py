"""Reads and writes the standard streams, which may be closed, full, or a pipe whose reader is gone."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import IO


class StreamError(Exception):
    """A stream cannot be read or written; the message says which one and why."""


def prepare() -> None:
    """Make any file name printable, and reserve the file descriptors of closed streams."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            number = os.open(os.devnull, os.O_RDWR)
            while number < 3:
                number = os.dup(number)
            os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(text: str) -> None:
    """One line on stderr, if there is one."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"migrate-hierarchical: {text}\n")
            sys.stderr.flush()


def read_stdin() -> bytes:
    """The whole of stdin; raises StreamError."""
    if sys.stdin is None:
        raise StreamError("stdin is closed")
    try:
        return sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        raise StreamError(f"stdin cannot be read: {getattr(error, 'strerror', None) or error}") from None


def write(data: str | bytes, to_stderr: bool = False) -> None:
    """Write and flush; raises StreamError, or BrokenPipeError if the reader is gone."""
    stream, name = (sys.stderr, "stderr") if to_stderr else (sys.stdout, "stdout")
    if stream is None:
        if data:
            raise StreamError(f"{name} is closed: nothing can be printed there")
        return
    try:
        stream.flush()
        if isinstance(data, bytes):
            stream.buffer.write(data)
            stream.buffer.flush()
        else:
            stream.write(data)
            stream.flush()
    except BrokenPipeError:
        abandon(stream)
        raise
    except (OSError, ValueError) as error:
        abandon(stream)
        reason = getattr(error, "strerror", None) or error
        raise StreamError(f"{name} cannot be written: {reason}") from None


def abandon(stream: IO[str]) -> None:
    """Discard what is left in a stream, so that the interpreter does not try to write it again at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
