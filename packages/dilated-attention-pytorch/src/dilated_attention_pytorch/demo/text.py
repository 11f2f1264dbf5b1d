"""The text that the demo trains on, and the held-out part."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cli.errors import CommandError

# Limits on the text of the standard library: no tests, no data tables, no installed packages.
MAX_LIBRARY_BYTES = 16 * 2**20
EXCLUDED_FOLDERS = {
    *("site-packages", "dist-packages", "__pycache__"),
    *("test", "tests", "idle_test", "encodings", "pydoc_data"),
}
HELD_OUT_EVERY = 16  # one in this many files of the standard library is held out
HELD_OUT_SHARE = 0.1  # share of the user's text that is held out, at its end


@dataclass(frozen=True)
class Text:
    """Training text and held-out text, uint8 (n_bytes,) each; the model never trains on `held_out`."""

    name: str
    train: Tensor
    held_out: Tensor


def load_text(files: Sequence[Path], context: int) -> Text:
    """Load the files, or the sources of the standard library if no files are given.

    Raises:
        CommandError: a file cannot be read, or the text is too short for one context to train on and one held out.
    """
    name, train, held_out = split_files(files, context) if files else split_library()
    for part, role in ((train, "train on"), (held_out, "hold out")):
        if len(part) <= context:
            raise CommandError(
                f"the text is too short: {len(part):,} bytes to {role} of {len(train) + len(held_out):,} in total, "
                f"--context {context} needs {context + 1:,} to train on and as many to hold out; "
                "use more text or a smaller --context"
            )
    return Text(name, as_tensor(train), as_tensor(held_out))


def split_files(files: Sequence[Path], context: int) -> tuple[str, bytes, bytes]:
    """Name, training text and held-out text (the last part) of the concatenated files."""
    text = b"".join(read(file) for file in files)
    n_held_out = max(int(len(text) * HELD_OUT_SHARE), context + 1)
    n_train = max(len(text) - n_held_out, 0)
    name = str(files[0]) if len(files) == 1 else f"{len(files)} files"
    return name, text[:n_train], text[n_train:]


def split_library() -> tuple[str, bytes, bytes]:
    """Name, training text and held-out text of the standard library."""
    train: list[bytes] = []
    held_out: list[bytes] = []
    n_files = n_bytes = 0
    for file in library_files():
        source = file.read_bytes() if os.access(file, os.R_OK) else b""
        if n_bytes + len(source) > MAX_LIBRARY_BYTES:
            break
        (held_out if n_files % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else train).append(source)
        n_files, n_bytes = n_files + 1, n_bytes + len(source)
    if not n_files:
        raise CommandError("this Python has no sources of its standard library to train on; give a FILE")
    return f"{n_files:,} source files of the standard library", b"".join(train), b"".join(held_out)


def library_files() -> list[Path]:
    """The .py files of the standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def read(file: Path) -> bytes:
    """The bytes of a file that the user named."""
    if file.is_dir():
        raise CommandError(f"{file} is a folder; give files, such as {file / '*'}")
    try:
        return file.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror or error}") from None


def as_tensor(text: bytes) -> Tensor:
    """uint8 (n_bytes,)."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
