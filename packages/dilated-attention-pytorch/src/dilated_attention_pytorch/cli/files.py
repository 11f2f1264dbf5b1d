"""Files that a command writes: told at once where they cannot be, and never half there."""

from __future__ import annotations

import os
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
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=".", suffix=".partial", delete=False
    ) as scratch:
        try:
            scratch.write(content)
            scratch.close()
            os.chmod(scratch.name, mode_of(target))
            os.replace(scratch.name, target)
        except BaseException:
            scratch.close()
            os.unlink(scratch.name)
            raise


def mode_of(file: Path) -> int:
    """The permissions of a file, or those that a new one would get."""
    try:
        return stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
