"""Every rule and every reason has the texts that its page of the documentation shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrate_hierarchical.catalogue import RULES
from migrate_hierarchical.catalogue.explanations import EXPLANATIONS
from migrate_hierarchical.catalogue.reasons import REASONS
from migrate_hierarchical.cli import main
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_has_texts(rule) -> None:
    for text in (rule.summary, rule.before, rule.after, rule.why, rule.safe, *rule.changes):
        assert text.strip()


def test_every_reason_has_an_explanation() -> None:
    assert list(EXPLANATIONS) == list(REASONS), "explanations.py follows the order of reasons.py"


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_example_of_the_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    explanation = EXPLANATIONS[name]
    assert explanation.why.strip()
    assert explanation.todo.strip()
    monkeypatch.chdir(tmp_path)
    other, content = explanation.beside
    if other:
        Path(other).write_text(content)
    Path(explanation.path).write_text(explanation.before)
    assert main(["--check", explanation.path]) == 2
    assert name in capsys.readouterr().out
    if explanation.by_hand:
        finished = migrate_bytes(explanation.path, explanation.by_hand.encode(), Settings())
        assert (finished.new, finished.left) == (None, [])
