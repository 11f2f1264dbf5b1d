"""Which text the demo learns, and which part of it is held out."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cli.errors import CommandError

# Of the standard library: at most so much, no tests, no tables, nothing that was installed beside it.
MAX_LIBRARY_BYTES = 16 * 2**20
LEFT_OUT_FOLDERS = {
    *("site-packages", "dist-packages", "__pycache__"),
    *("test", "tests", "idle_test", "encodings", "pydoc_data"),
}
# Every so many files of the standard library are held out; of the user's text, the last part of this size.
HELD_OUT_EVERY = 16
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Text:
    """What is learnt and what is held out, as uint8 tensors; the model never trains on `held_out`."""

    name: str
    train: Tensor
    held_out: Tensor


def load_text(files: Sequence[Path], context: int) -> Text:
    """The files' text, or the standard library's own sources when there are none.

    Raises:
        CommandError: a file cannot be read, or there is too little text for one context to learn and one to hold
            out.
    """
    name, train, held_out = split_files(files, context) if files else split_library()
    for part, role in ((train, "learn from"), (held_out, "hold out")):
        if len(part) <= context:
            raise CommandError(
                f"the text is too short: {len(part):,} bytes to {role} of {len(train) + len(held_out):,} in all, "
                f"--context {context} needs {context + 1:,} to learn from and as many to hold out; "
                "give more text or a smaller --context"
            )
    return Text(name, as_tensor(train), as_tensor(held_out))


def split_files(files: Sequence[Path], context: int) -> tuple[str, bytes, bytes]:
    """Name, text to learn and the last part, held out, of the files one after the other."""
    text = b"".join(read(file) for file in files)
    n_held_out = max(int(len(text) * HELD_OUT_SHARE), context + 1)
    n_train = max(len(text) - n_held_out, 0)
    name = str(files[0]) if len(files) == 1 else f"{len(files)} files"
    return name, text[:n_train], text[n_train:]


def split_library() -> tuple[str, bytes, bytes]:
    """Name, text to learn and held-out files of the standard library."""
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
        raise CommandError("this Python has no sources of its standard library to learn from; give a FILE")
    return f"the standard library's own {n_files:,} source files", b"".join(train), b"".join(held_out)


def library_files() -> list[Path]:
    """The standard library's .py files, always in the same order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in LEFT_OUT_FOLDERS]
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
