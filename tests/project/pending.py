"""What the rules of test_imports.py say and the code does not do yet. An entry that holds must go from here."""

from __future__ import annotations

PENDING: dict[str, set[str]] = {
    "circles of codemod": {
        "analysis.class_bodies -> analysis.scopes",
        "checks.aliases -> plan",
        "callables -> project",
        "checks.annotations -> plan",
        "checks.branches -> plan",
        "checks.by_name -> plan",
        "checks.magics -> plan",
        "checks.members -> plan",
        "checks.strings -> plan",
        "edit.imports -> plan",
        "rules.base -> plan",
        "rules.hier001 -> plan",
        "rules.hier002 -> plan",
        "rules.hier003 -> plan",
        "rules.hier004 -> plan",
        "rules.hier005 -> plan",
        "rules.hier006 -> plan",
        "rules.hier007 -> plan",
        "rules.module -> plan",
    },
}
