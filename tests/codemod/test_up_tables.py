"""The codemod's tables of 0.2.0 say the same as those of the package."""

from __future__ import annotations

import inspect
import re

import pytest

from migrate_hierarchical.removed_api import REMOVED_MODULE, REMOVED_NAMES, is_gone
from migrate_hierarchical.upstream.old_api import (
    CARRIED_OVER,
    MEMBERS,
    OLD_PARAMETERS,
    OTHER_KEYWORDS,
    REMOVED_KEYWORDS,
    RENAMED,
    RENAMED_KEYWORDS,
    STILL_IN_PLACE,
    TAKEN_BY,
    WITHOUT_SUCCESSOR,
    is_old_module,
)

package = pytest.importorskip("dilated_attention_pytorch")


def test_every_name_that_was_not_carried_over_is_known() -> None:
    names = pytest.importorskip("dilated_attention_pytorch.upstream.names")
    assert {*RENAMED, *WITHOUT_SUCCESSOR} == set(names.OLD_NAMES)


def test_every_module_is_known() -> None:
    modules = pytest.importorskip("dilated_attention_pytorch.upstream.modules")
    assert [name for name in modules.OLD_MODULES if not is_old_module(name)] == []


def test_keywords_that_are_removed_are_those_that_the_package_tells_to_delete() -> None:
    keywords = pytest.importorskip("dilated_attention_pytorch.upstream.keywords").OLD_KEYWORDS
    assert {name for name, text in keywords.items() if text.startswith("delete it")} == REMOVED_KEYWORDS
    others = {name: text for name, text in keywords.items() if not text.startswith("delete it")}
    assert others.keys() == {*OTHER_KEYWORDS, *RENAMED_KEYWORDS, "preset_name"}
    assert {name: others[name] for name in OTHER_KEYWORDS} == OTHER_KEYWORDS


def test_fields_are_taken_by_the_patterns_that_take_them_now() -> None:
    from dilated_attention_pytorch import config

    assert {field: tuple(config.TAKEN_BY[field]) for field in TAKEN_BY} == TAKEN_BY


def test_members_that_are_marked_are_not_members_now() -> None:
    module = package.BlockSparseAttention()
    assert not [name for name in MEMBERS if hasattr(module, name)]
    named = {word for text in MEMBERS.values() for word in re.findall(r"(\w+)\(", text)} - {"stats"}
    assert all(hasattr(module, name) for name in named)


def test_names_are_in_one_table_only() -> None:
    tables = [set(RENAMED), set(CARRIED_OVER), set(WITHOUT_SUCCESSOR), set(REMOVED_NAMES)]
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert not REMOVED_KEYWORDS & {*OTHER_KEYWORDS, *RENAMED_KEYWORDS}


def test_names_without_a_successor_are_not_in_the_package() -> None:
    assert not set(package.__all__) & {*WITHOUT_SUCCESSOR, *RENAMED}


def test_modules_of_the_package_are_not_taken_for_old_ones() -> None:
    import pkgutil

    modules = [
        module.name for module in pkgutil.iter_modules(package.__path__) if module.name != REMOVED_MODULE
    ]
    assert "modules" in modules
    assert [name for name in modules if is_old_module(name) or is_gone(name)] == []


@pytest.mark.parametrize(
    "name", [name for name in OLD_PARAMETERS if RENAMED.get(name, name) in package.__all__]
)
def test_parameters_that_stay_in_place_are_the_first_ones(name: str) -> None:
    made = getattr(package, RENAMED.get(name, name))
    parameters = [each for each in inspect.signature(made).parameters if each != "kwargs"]
    there = tuple("preset_name" if each == "name" else each for each in parameters)
    fixed = STILL_IN_PLACE[name]
    assert there[: len(fixed)] == fixed == OLD_PARAMETERS[name][: len(fixed)]
