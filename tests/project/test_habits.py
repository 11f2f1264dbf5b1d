"""The hooks that `pre-commit install` sets up for commit messages."""

from __future__ import annotations

import re

import pytest

from tests.project.repository import ROOT

CONFIG = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
MOST = 72  # characters of a title


def refuses(message: str) -> bool:
    """Whether the hook fails for a message, found as pre-commit's pygrep with --multiline finds it."""
    hook = CONFIG[CONFIG.index("id: title-length") :]
    (entry,) = re.findall(r"^ +entry: '(.*)'$", hook, re.MULTILINE)[:1]
    assert "args: [--multiline]" in hook
    return bool(re.compile(entry.encode(), re.MULTILINE | re.DOTALL).search(message.encode()))


@pytest.mark.parametrize("letter", ["x", "é", "×", "字"])  # 1 to 3 bytes
def test_a_title_may_have_72_characters(letter: str) -> None:
    assert not refuses(letter * MOST + "\n")
    assert not refuses(letter * MOST)
    assert refuses(letter * (MOST + 1) + "\n")


def test_the_text_below_the_title_may_have_longer_lines() -> None:
    assert not refuses(f"A title\n\n{'x' * 100}\n{'y' * 100}\n")
    assert refuses(f"{'x' * 100}\n\nA text\n")


def test_pre_commit_install_sets_up_both_kinds_of_hooks() -> None:
    assert "\ndefault_install_hook_types: [pre-commit, commit-msg]\n" in CONFIG
    assert "\ndefault_stages: [pre-commit]\n" in CONFIG  # the others look at files, not at messages
