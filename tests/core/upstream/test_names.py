"""Names of 0.2.0: importing one says what to write instead, and what it says runs."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import dilated_attention_pytorch as package
from dilated_attention_pytorch.removed import REPLACEMENTS
from dilated_attention_pytorch.upstream.names import OLD_NAMES, PAGE

ROOT = Path(__file__).parents[3]
# For one process. Port 0: one that is free.
AS_TORCHRUN_SETS_THEM = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
}  # fmt: skip


def message(name: str) -> str:
    with pytest.raises(ImportError) as error:
        exec(f"from dilated_attention_pytorch import {name}", {})
    return str(error.value)


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_name_says_what_to_write_instead(name: str) -> None:
    text = message(name)
    assert text.startswith(f"`dilated_attention_pytorch.{name}` of version 0.2.0 was not carried over. ")
    assert ("Write instead:" in text) != ("Nothing replaces it." in text)
    assert PAGE in text
    assert "://" not in text


@pytest.mark.parametrize("name", OLD_NAMES)
def test_attribute_of_the_package_says_the_same(name: str) -> None:
    with pytest.raises(ImportError) as error:
        getattr(package, name)
    assert str(error.value) == message(name)


@pytest.mark.parametrize("replacement", {each: name for name, each in OLD_NAMES.items()}.values())
def test_program_in_the_message_runs(replacement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AS_TORCHRUN_SETS_THEM.items():
        monkeypatch.setenv(name, value)
    program = textwrap.dedent("".join(re.findall(r"^(?:    .*)?\n", message(replacement), re.MULTILINE)))
    assert program.strip() == OLD_NAMES[replacement].program.strip()
    namespace: dict[str, Any] = {}
    try:
        exec(program, namespace)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "path",
    sorted(
        {path for each in OLD_NAMES.values() for path in re.findall(r"docs/[\w/.-]+\.md", each.note)} | {PAGE}
    ),
)
def test_pages_that_messages_name_exist(path: str) -> None:
    assert (ROOT / path).is_file()


def test_names_that_exist_are_not_called_old() -> None:
    assert not set(OLD_NAMES) & {*package.__all__, *REPLACEMENTS}


def test_dir_and_star_import_do_not_know_old_names() -> None:
    assert not set(dir(package)) & set(OLD_NAMES)
    namespace: dict[str, Any] = {}
    exec("from dilated_attention_pytorch import *", namespace)
    assert not set(namespace) & set(OLD_NAMES)


def test_type_checkers_know_that_an_old_name_is_gone(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    source = tmp_path / "old.py"
    source.write_text("from dilated_attention_pytorch import BlockSparseAttention, LongNet\n", "utf-8")
    here = Path(package.__file__)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--follow-imports=skip",
            "--cache-dir",
            "cache",
            str(source),
            str(here),
        ],
        env={"MYPYPATH": str(here.parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.findall(r'has no attribute "(\w+)"', done.stdout) == ["LongNet"], done.stdout + done.stderr
