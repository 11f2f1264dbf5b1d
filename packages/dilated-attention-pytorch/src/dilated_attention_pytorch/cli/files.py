"""Output files: checked before the work begins, and written atomically."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path


def check_file(file: Path) -> None:
    """Raise OSError unless the file can be written. Its folder must exist."""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        raise OSError("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
    folder = Path(os.path.realpath(file)).parent
    if not folder.is_dir():
        raise OSError(f"the folder {file.parent} does not exist")
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_whole(file: Path, content: bytes) -> None:
    """Write a file atomically: it has either the new content or the old. A link is followed, not replaced."""
    target = Path(os.path.realpath(file))
    # Named before it is created, so that an interruption never leaves it behind.
    scratch = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        scratch.write_bytes(content)
        if target.exists():
            scratch.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
