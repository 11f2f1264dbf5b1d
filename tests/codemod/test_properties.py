"""Programs made of uses in random places and layouts."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings

blank = st.sampled_from(["", " ", "  "])
line = st.sampled_from(["", "\n    ", "\n\n        ", "  # why {n}\n    "])
IMPORTS = st.sampled_from(
    [
        "from dilated_attention_pytorch import (BlockSparseHierarchical, HierarchicalConfig, "
        "create_hierarchical_attention, create_block_sparse_attention, get_hierarchical_presets)",
        "from dilated_attention_pytorch import (\n    BlockSparseHierarchical,  # one\n    HierarchicalConfig,\n"
        "    create_hierarchical_attention,\n    create_block_sparse_attention,\n    get_hierarchical_presets,\n)",
        "from dilated_attention_pytorch import *",
        "import dilated_attention_pytorch as d",
        "from dilated_attention_pytorch.block_sparse_hierarchical import BlockSparseHierarchical, HierarchicalConfig, "
        "create_hierarchical_attention, get_hierarchical_presets\n"
        "from dilated_attention_pytorch.block_sparse_factory import create_block_sparse_attention",
    ]
)


@st.composite
def arguments(draw, *options: str) -> str:
    """Some of the arguments, with random space and comments between them."""
    chosen = (
        draw(st.lists(st.sampled_from(options), unique_by=lambda text: text.split("=")[0], max_size=4))
        if options
        else []
    )
    out = ""
    for text in chosen:
        out += draw(line).format(n=draw(st.integers(0, 9))) + text + draw(blank) + ","
    return out + draw(line).format(n=draw(st.integers(0, 9)))


@st.composite
def expression(draw, prefix: str) -> str:
    config = f"{prefix}HierarchicalConfig(" + draw(arguments("level_configs=None")) + ")"
    presets = f"{prefix}get_hierarchical_presets()"
    configs = [config, f"{presets}['long_range']", "None"]
    shared = [
        "dropout=0.1",
        f"hierarchical_config={draw(st.sampled_from(configs))}",
        "segment_lengths=[2048, 4096]",
        "**options",
    ]
    forms = [
        f"{prefix}BlockSparseHierarchical(" + draw(arguments(*shared, "dilation_rates=(1, 2)")) + ")",
        f"{prefix}create_hierarchical_attention(512, 8," + draw(arguments(*shared)) + ")",
        f"{prefix}create_block_sparse_attention('hierarchical',"
        + draw(arguments(*shared, "block_size=128"))
        + ")",
        f"{prefix}create_block_sparse_attention(" + draw(arguments(*shared)) + ")",
        f"{prefix}BlockSparseHierarchical",
        config,
        presets,
        f"{presets}['standard']",
    ]
    return draw(st.sampled_from(forms))


@st.composite
def statement(draw, prefix: str) -> str:
    value = draw(expression(prefix))
    inner = draw(expression(prefix))
    return draw(
        st.sampled_from(
            [
                f"x = {value}",
                f"x = [{value}, {inner}]",
                f"f({value}, key={inner})  # call",
                f"x = y = ({value})",
                f"lambda a={value}: {inner}",
                f"if ({value}): x = {inner}; y = 2",
                f"def g(a={value}):\n    '''doc'''\n    return {inner}",
                f"class A:\n    # in a class\n    b = {value}\n\n    def m(self):\n        self.x = {inner}",
                f"for i in range(3):\n    x = {value}\nelse:\n    y = {inner}",
                f"try:\n    x = {value}\nexcept ValueError:\n    # caught\n    y = {inner}",
                f"x: {prefix}BlockSparseHierarchical = {value}",
                f"isinstance(x, {prefix}HierarchicalConfig); z = {value}",
                f"with f({value}) as x:\n    pass  # body",
                f"x = {{'a': {value}, **{{'b': {inner}}}}}",
            ]
        )
    )


@st.composite
def program(draw) -> str:
    imports = draw(IMPORTS)
    prefix = "d." if imports.endswith("as d") else ""
    head = draw(
        st.sampled_from(["", '"""Docstring."""\n', "from __future__ import annotations\n", "# comment\n\n"])
    )
    body = "\n\n".join(draw(st.lists(statement(prefix), min_size=1, max_size=4)))
    tail = draw(st.sampled_from(["", "\n", "\n# end", "\n\n\n"]))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    return (head + imports + "\noptions = {}\n" + body + tail).replace("\n", newline)


def comments(source: str) -> Counter[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source, newline=None).readline)
    found = Counter(token.string for token in tokens if token.type == tokenize.COMMENT)
    return Counter({text: n for text, n in found.items() if "TODO(migrate" not in text and text != "# one"})


@settings(max_examples=150, deadline=None)
@given(program())
def test_any_program(source: str) -> None:
    ast.parse(source)
    result = migrate_bytes("x.py", source.encode(), Settings())
    assert result.error is None
    new = (result.new or source.encode()).decode()
    ast.parse(new)
    assert comments(new) == comments(source)
    again = migrate_bytes("x.py", new.encode(), Settings())
    assert again.new is None
    if "ierarchical" in source:
        assert result.rewritten or result.left
    used = {node.id for node in ast.walk(ast.parse(new)) if isinstance(node, ast.Name)}
    if not result.left:
        assert not any("ierarchical" in name for name in used)


@settings(max_examples=100, deadline=None)
@given(program(), st.sampled_from(["another_package", "dilated_attention", "my.dilated"]))
def test_same_program_of_another_package_is_untouched(source: str, package: str) -> None:
    other = source.replace("dilated_attention_pytorch", package) + "\n# dilated_attention_pytorch\n"
    result = migrate_bytes("x.py", other.encode(), Settings())
    assert (result.new, result.left, result.error) == (None, [], None)


@settings(max_examples=60, deadline=None)
@given(program())
def test_same_program_in_a_notebook_and_on_a_page(source: str) -> None:
    source = source.replace("\r\n", "\n").rstrip("\n") + "\n"
    result = migrate_bytes("x.py", source.encode(), Settings())
    expected = (result.new or source.encode()).decode()
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "source": source.splitlines(keepends=True)}
    book = json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)
    for path, text in (("x.ipynb", book), ("x.md", f"# page\n\n~~~python\n{source}~~~\n")):
        other = migrate_bytes(path, text.encode(), Settings())
        new = (other.new or text.encode()).decode()
        code = (
            "".join(json.loads(new)["cells"][0]["source"]) if path == "x.ipynb" else new.split("~~~")[1][7:]
        )
        assert code == expected
        assert [entry.rule for entry in other.left] == [entry.rule for entry in result.left]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    data = b"import dilated_attention_pytorch  # hierarchical\n" + data
    for path in ("x.py", "x.ipynb", "x.md", "x.rst", "x.yaml"):
        result = migrate_bytes(path, data, Settings())
        assert result.new is None or path != "x.py"
