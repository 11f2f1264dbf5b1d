"""Every rule and every reason has the texts that its page of the documentation shows."""

from __future__ import annotations

import pytest

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.rules import RULES
from migrate_hierarchical.rules.explanations import EXPLANATIONS
from migrate_hierarchical.rules.reasons import REASONS
from migrate_hierarchical.settings import Settings


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_has_texts(rule) -> None:
    for text in (rule.summary, rule.before, rule.after, rule.why, rule.safe, *rule.changes):
        assert text.strip()


def test_every_reason_has_an_explanation() -> None:
    assert list(EXPLANATIONS) == list(REASONS), "rules/explanations.py follows the order of rules/reasons.py"


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_example_of_the_reason(name: str) -> None:
    explanation = EXPLANATIONS[name]
    assert explanation.why.strip()
    assert explanation.todo.strip()
    result = migrate_bytes(explanation.path, explanation.before.encode(), Settings())
    assert name in {entry.rule for entry in result.left}
    if explanation.by_hand:
        finished = migrate_bytes(explanation.path, explanation.by_hand.encode(), Settings())
        assert (finished.new, finished.left) == (None, [])
