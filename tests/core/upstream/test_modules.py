"""Modules of 0.2.0: importing one says where its names are now."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import sys

import pytest

import dilated_attention_pytorch as package
from dilated_attention_pytorch.removed import REPLACEMENTS
from dilated_attention_pytorch.upstream.modules import NOTES, OLD_MODULES, OldModuleFinder, install
from dilated_attention_pytorch.upstream.names import OLD_NAMES, PAGE


@pytest.mark.parametrize("module", OLD_MODULES)
def test_old_module_says_where_its_names_are(module: str) -> None:
    # twice: the first attempt must not leave half a module behind
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError) as error:
            importlib.import_module(f"dilated_attention_pytorch.{module}")
    assert error.value.name == f"dilated_attention_pytorch.{module}"
    text = str(error.value)
    assert text.startswith(f"`dilated_attention_pytorch.{module}` is a module of version 0.2.0 ")
    assert PAGE in text
    assert OLD_MODULES[module] or NOTES[module] in text


@pytest.mark.parametrize(
    "statement",
    [
        "from dilated_attention_pytorch.block_sparse_factory import create_block_sparse_attention",
        "from dilated_attention_pytorch.sparse.block_sparse_factory import create_block_sparse_attention",
        "import dilated_attention_pytorch.core.unified_memory_pool",
        "from dilated_attention_pytorch import core",
        "from dilated_attention_pytorch.utils.sparse_pattern_utils import PatternConfig",
    ],
)
def test_every_form_of_import_says_it(statement: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"is a module of version 0\.2\.0"):
        exec(statement, {})


@pytest.mark.parametrize("module", OLD_MODULES)
def test_names_of_an_old_module_are_here_or_say_what_replaces_them(module: str) -> None:
    for name in OLD_MODULES[module]:
        assert name in package.__all__ or name in OLD_NAMES, name


def test_no_module_of_this_library_is_called_old() -> None:
    here = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not here & {*OLD_MODULES, *REPLACEMENTS}
    assert set(NOTES) <= set(OLD_MODULES)


def test_other_missing_modules_are_ordinary_errors() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'dilated_attention_pytorch.nothing'"):
        importlib.import_module("dilated_attention_pytorch.nothing")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'block_sparse_factory'"):
        importlib.import_module("block_sparse_factory")


def test_importing_the_library_again_does_not_add_another_finder() -> None:
    install()
    assert isinstance(sys.meta_path[-1], OldModuleFinder)
    assert sum(type(finder).__name__ == "OldModuleFinder" for finder in sys.meta_path) == 1


def test_pickle_of_an_old_class_says_where_it_is() -> None:
    old = (
        b"cdilated_attention_pytorch.block_sparse_ring_dilated_attention\nBlockSparseRingDilatedAttention\n."
    )
    with pytest.raises(ModuleNotFoundError, match="BlockSparseRingDilatedAttention"):
        pickle.loads(old)
