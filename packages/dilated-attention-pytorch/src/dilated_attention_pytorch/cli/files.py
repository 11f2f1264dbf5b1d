"""Files that a command writes: told at once where they cannot be, and never half there."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path


def check_file(file: Path) -> None:
    """Raise OSError unless a file of this name can be written; its folder must exist."""
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
    """Write a file so that it is whole or as it was before, whatever happens; a link stays one."""
    target = Path(os.path.realpath(file))
    scratch = target.with_name(
        f".{secrets.token_hex(8)}.partial"
    )  # known before it is there, so that none is left
    try:
        scratch.write_bytes(content)
        if target.exists():
            scratch.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
