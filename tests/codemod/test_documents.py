"""Notebooks, Markdown, reStructuredText and files that are only reported."""

from __future__ import annotations

import json
import textwrap

import pytest

from migrate_hierarchical.documents.result import Result
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings

IMPORT = "from dilated_attention_pytorch import BlockSparseHierarchical\n"
CALL = "model = BlockSparseHierarchical([2048], [1])"
NEW_IMPORT = "from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig\n"
NEW_CALL = """\
model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
)"""


def migrate(path: str, text: str) -> Result:
    return migrate_bytes(path, text.encode(), Settings())


def new_text(path: str, text: str) -> str:
    result = migrate(path, text)
    assert result.error is None
    assert result.new is not None
    again = migrate_bytes(path, result.new, Settings())
    assert again.new is None, "the second run changed something"
    return result.new.decode()


# ---- notebooks


def notebook(*cells: dict, **more: object) -> dict:
    return {"cells": list(cells), "metadata": {"z": 1, "a": 2}, "nbformat": 4, "nbformat_minor": 5, **more}


def code(source: object, **more: object) -> dict:
    return {
        "cell_type": "code",
        "execution_count": 3,
        "id": "x",
        "metadata": {},
        "outputs": [],
        "source": source,
        **more,
    }


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def test_cells_share_their_names() -> None:
    book = notebook(
        code(lines(IMPORT + "import os")),
        {"cell_type": "markdown", "metadata": {}, "source": [CALL]},
        code(lines(CALL)),
    )
    new = json.loads(new_text("a.ipynb", json.dumps(book, indent=1)))
    assert "".join(new["cells"][0]["source"]) == NEW_IMPORT + "import os"
    assert new["cells"][1]["source"] == [CALL]
    assert "".join(new["cells"][2]["source"]) == NEW_CALL


@pytest.mark.parametrize("indent", [None, 1, 2, 4])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_other_byte_of_a_notebook_stays(indent: int | None, ascii_only: bool) -> None:
    output = {"output_type": "stream", "name": "stdout", "text": ["é — BlockSparseHierarchical\n"]}
    book = notebook(code(lines("s = 'ü'\n" + IMPORT), outputs=[output]), code(lines(CALL + "\nx = 'é'")))
    text = json.dumps(book, indent=indent, ensure_ascii=ascii_only) + "\n"
    new = new_text("a.ipynb", text)
    expected = notebook(
        code(lines("s = 'ü'\n" + NEW_IMPORT), outputs=[output]), code(lines(NEW_CALL + "\nx = 'é'"))
    )
    assert new == json.dumps(expected, indent=indent, ensure_ascii=ascii_only) + "\n"


def test_source_as_one_string() -> None:
    book = notebook(code(IMPORT + CALL))
    assert json.loads(new_text("a.ipynb", json.dumps(book)))["cells"][0]["source"] == NEW_IMPORT + NEW_CALL


def test_magics_and_shell_lines_stay() -> None:
    cells = [
        "%matplotlib inline\n!pip install dilated-attention-pytorch\n"
        + IMPORT
        + "files = !ls\nmodel?\n"
        + CALL
        + "\n%time model\n",
        "%%bash\necho BlockSparseHierarchical\n",
        "%%time\n" + CALL,
        "if True:\n    %timeit model\n    !echo {x}",
    ]
    book = notebook(*(code(lines(cell)) for cell in cells))
    new = ["".join(cell["source"]) for cell in json.loads(new_text("a.ipynb", json.dumps(book)))["cells"]]
    assert new[0] == cells[0].replace(IMPORT, NEW_IMPORT).replace(CALL, NEW_CALL)
    assert new[1] == cells[1]
    assert new[2] == "%%time\n" + NEW_CALL
    assert new[3] == cells[3]


def markdown(source: object) -> dict:
    return {"cell_type": "markdown", "attachments": {"a": "BlockSparseHierarchical"}, "source": source}


TEXT = (
    "# Attention \x0c\u2028 é\n\n- With `BlockSparseHierarchical`:\n\n  ```python\n%s  ```\n\nMore\r\ntext."
)


@pytest.mark.parametrize("form", [lines, str, lambda text: [text], lambda text: [text[:9], text[9:]]])
@pytest.mark.parametrize("indent", [None, 1])
def test_blocks_in_markdown_cells_are_rewritten(form, indent: int | None) -> None:
    def book(code_of_block: str) -> str:
        block = textwrap.indent(code_of_block, "  ")
        cells = [
            code(lines("x = 1")),
            markdown(form(TEXT % block)),
            markdown(form("BlockSparseHierarchical")),
        ]
        return json.dumps(notebook(*cells), indent=indent) + "\n"

    after = new_text("a.ipynb", book(IMPORT + CALL + "\n"))
    expected = TEXT % textwrap.indent(NEW_IMPORT + NEW_CALL + "\n", "  ")
    new = json.loads(after)
    assert "".join(new["cells"][1].pop("source")) == expected
    old = json.loads(book(IMPORT + CALL + "\n"))
    del old["cells"][1]["source"]
    assert new == old
    page = new_text("a.md", TEXT % textwrap.indent(IMPORT + CALL + "\n", "  "))
    assert page == expected


def test_every_other_byte_of_a_markdown_cell_stays() -> None:
    head, tail = r'"a\/b \u00e9 \\n \ud83d\ude00 \t\n",', r'"```\n", "two\/lines\nin one \u00E9"'
    text = '{"cells": [{"cell_type": "markdown", "source": [%s "```python\\n", %s %s]}]}'
    old = '"from dilated_attention_pytorch import HierarchicalConfig as C\\n", "x: C\\n",'
    new = '"from dilated_attention_pytorch import SparsePatternConfig\\n", "x: SparsePatternConfig\\n",'
    assert new_text("a.ipynb", text % (head, old, tail)) == text % (head, new, tail)
    whole = '{"cells": [{"cell_type": "markdown", "source": "%s```python\\n%s%s"}]}'
    parts = [
        [each.replace('",', "").replace('"', "").replace("\\n ", "\\n") for each in (head, kind, tail)]
        for kind in (old, new)
    ]
    assert new_text("a.ipynb", whole % tuple(parts[0])) == whole % tuple(parts[1])


def test_blocks_of_markdown_see_the_names_of_code_cells_but_not_the_other_way_round() -> None:
    block = lines("```python\n" + CALL + "\n```")
    other = lines(
        "```python\nfrom dilated_attention_pytorch import SparsePatternConfig\nBlockSparseHierarchical = 1\n```"
    )
    book = notebook(markdown(other), code(lines(IMPORT + CALL)), markdown(block))
    new = json.loads(new_text("a.ipynb", json.dumps(book)))["cells"]
    assert "".join(new[1]["source"]) == NEW_IMPORT + NEW_CALL
    alone = json.loads(new_text("a.ipynb", json.dumps(notebook(book["cells"][1], book["cells"][2]))))["cells"]
    assert "".join(alone[1]["source"]) == "```python\n" + NEW_CALL + "\n```"


def test_lines_of_reports_in_markdown_cells() -> None:
    block = (
        "Text\n\n```python\n"
        + IMPORT
        + CALL
        + "\n```\n\n```python\nfrom ( import BlockSparseHierarchical\n```\n"
    )
    block += "```bash\npython -c 'BlockSparseHierarchical'\n```\n\n```python\n" + IMPORT
    block += "class A(BlockSparseHierarchical): ...\n```\n"
    text = json.dumps(notebook(code(lines("x = 1\ny = 2")), markdown(lines(block))), indent=1)
    result = migrate("a.ipynb", text)
    assert result.new is not None
    old, new = text.splitlines(), result.new.decode().splitlines()
    assert {entry.rule for entry in result.left} == {"HIER101", "HIER103", "HIER190"}
    for entry in result.left:
        assert entry.new_line is not None
        assert "BlockSparseHierarchical" in old[entry.line - 1]
        assert old[entry.line - 1] == new[entry.new_line - 1]
    rewritten = {(entry.rule, old[entry.line - 1].strip()[1:9]) for entry in result.rewritten}
    assert ("HIER001", "model = ") in rewritten
    assert all(entry.line and entry.new_line for entry in result.rewritten)


def test_a_cell_that_is_no_python_does_not_stop_the_others() -> None:
    book = notebook(
        code(lines(IMPORT)), code(lines("this is not ( python BlockSparseHierarchical")), code(lines(CALL))
    )
    result = migrate("a.ipynb", json.dumps(book))
    assert result.new is not None
    assert [entry.rule for entry in result.left] == ["HIER190"]
    assert "".join(json.loads(result.new)["cells"][2]["source"]) == NEW_CALL


def test_line_numbers_of_a_notebook_are_those_of_the_file() -> None:
    book = notebook(code(lines(IMPORT)), code(lines("x = 1\nclass A(BlockSparseHierarchical): pass\n")))
    text = json.dumps(book, indent=1)
    result = migrate("a.ipynb", text)
    assert [entry.rule for entry in result.left] == ["HIER101"]
    assert "class A" in "\n".join(text.splitlines()[result.left[0].line - 1 : result.left[0].line + 1])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cells": 3, "x": "dilated_attention_pytorch ierarchical"}',
        '{"cells": [{"cell_type": "code", "source": [1]}]}',
    ],
)
def test_broken_notebooks_are_reported(text: str) -> None:
    result = migrate(
        "a.ipynb", text + " " * 3 + '"dilated_attention_pytorch hierarchical"' if text == "{" else text
    )
    assert result.new is None


@pytest.mark.parametrize(
    "cells",
    [
        '[{"cell_type": "code", "source": [1, "HierarchicalConfig"]}]',
        '[{"cell_type": "code", "source": {"a": "HierarchicalConfig"}}]',
        '[{"cell_type": "code", "source": 3}, "HierarchicalConfig"]',
        '["HierarchicalConfig"]',
        '[["HierarchicalConfig"]]',
        '{"a": "HierarchicalConfig"}',
        '"HierarchicalConfig"',
    ],
)
def test_cells_of_other_types_are_no_notebook(cells: str) -> None:
    result = migrate("a.ipynb", f'{{"cells": {cells}, "x": "dilated_attention_pytorch"}}')
    assert result.new is None
    assert result.error is not None
    assert result.error.startswith("not a valid notebook")


# ---- Markdown


def test_fenced_blocks() -> None:
    page = f"# BlockSparseHierarchical\n\n```python\n{IMPORT}```\n\nText.\n\n~~~py\n{CALL}\n~~~\n\n```\n{CALL}\n```\n\n```bash\n{CALL}\n```\n"
    new = new_text("a.md", page)
    assert (
        new
        == f"# BlockSparseHierarchical\n\n```python\n{NEW_IMPORT}```\n\nText.\n\n~~~py\n{NEW_CALL}\n~~~\n\n```\n{CALL}\n```\n\n```bash\n{CALL}\n```\n"
    )


def test_indented_fences_inside_tabs() -> None:
    page = (
        '=== "Tab"\n\n    ``` python title="a.py"\n'
        + textwrap.indent(IMPORT + "\n" + CALL, "    ")
        + "\n    ```\n"
    )
    new = new_text("a.md", page)
    assert (
        new
        == '=== "Tab"\n\n    ``` python title="a.py"\n'
        + textwrap.indent(NEW_IMPORT + "\n" + NEW_CALL, "    ")
        + "\n    ```\n"
    )


def test_quoted_fences() -> None:
    page = f"> ```python\n> {IMPORT}> {CALL}\n> ```\n"
    assert "> model = create_block_sparse_attention(\n>     variant=" in new_text("a.md", page)


def test_doctest_examples() -> None:
    page = f"Text\n\n>>> {IMPORT}>>> model = BlockSparseHierarchical(\n...     [2048], [1])\n>>> model\nBlockSparseHierarchical()\n"
    new = new_text("a.md", page)
    first, *rest = NEW_CALL.splitlines(keepends=True)
    continued = "".join("... " + line for line in rest)
    assert new == f"Text\n\n>>> {NEW_IMPORT}>>> {first}{continued}\n>>> model\nBlockSparseHierarchical()\n"


def test_restructured_text() -> None:
    page = f"Title\n=====\n\n.. code-block:: python\n   :linenos:\n\n   {IMPORT}\n   {CALL}\n\nText\n\n.. code-block:: bash\n\n   {CALL}\n"
    new = new_text("a.rst", page)
    assert textwrap.indent(NEW_CALL, "   ") in new
    assert new.endswith(f".. code-block:: bash\n\n   {CALL}\n")


def test_crlf_pages_keep_their_newlines() -> None:
    page = f"Text\r\n\r\n```python\r\n{IMPORT}{CALL}\n```\n".replace("\r\n", "\n").replace("\n", "\r\n")
    new = new_text("a.md", page)
    assert new.count("\n") == new.count("\r\n")


def test_todo_in_a_page() -> None:
    page = f"```python\n{IMPORT}class A(BlockSparseHierarchical): ...\n```\n"
    result = migrate("a.md", page)
    assert result.new is not None
    assert "# TODO(migrate-hierarchical): HIER101" in result.new.decode()
    assert [(entry.rule, entry.line) for entry in result.left] == [("HIER101", 3)]


def test_block_that_is_no_python_is_reported_only_with_a_use() -> None:
    page = f"```python\n{IMPORT}{CALL}\n```\n\n```python\nx = ...(\n```\n\n```python\nmodel = BlockSparseHierarchical(...\n```\n"
    result = migrate("a.md", page)
    assert [(entry.rule, entry.line) for entry in result.left] == [("HIER190", 11)]


# ---- reported only


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("a.yaml", "model:\n  _target_: dilated_attention_pytorch.BlockSparseHierarchical\n", [2]),
        ("a.yml", "package: dilated_attention_pytorch\nvariant: hierarchical\n", [2]),
        ("a.toml", '[model]\npreset = "hierarchical_long"\n', [2]),
        ("a.json", '{"package": "dilated_attention_pytorch",\n "pattern_type": "hierarchical"}', [2]),
        ("a.sh", "python -m src.dilated_attention_pytorch.block_sparse_hierarchical\n", [1]),
        ("a.yaml", "clustering: hierarchical\n", []),
        ("a.yaml", "variant: hierarchical\n", []),
        ("a.json", '{"HierarchicalConfig": 1}', []),
    ],
)
def test_other_files_are_reported_and_never_changed(path: str, text: str, expected: list[int]) -> None:
    result = migrate(path, text)
    assert result.new is None
    assert [entry.line for entry in result.left] == expected
    assert {entry.rule for entry in result.left} <= {"HIER120"}


# ---- blocks of a page


def test_every_block_imports_what_it_uses() -> None:
    block = f"```python\n{IMPORT}{CALL}\n```\n"
    assert new_text("a.md", block + "\ntext\n\n" + block).count(NEW_IMPORT) == 2


def test_block_with_nothing_but_an_import_keeps_one() -> None:
    page = f"```python\n{IMPORT}```\n\n```python\n{IMPORT}{CALL}\n```\n"
    new = new_text("a.md", page)
    assert new.startswith(
        "```python\nfrom dilated_attention_pytorch import create_block_sparse_attention\n```\n"
    )


@pytest.mark.parametrize(
    "rest", ["", "import torch\n", f"x = 1\n{CALL}\n", "x = 1\nconfig = HierarchicalConfig()\n"]
)
def test_unused_import_goes_where_another_gives_the_new_name(rest: str) -> None:
    page = f"```python\n{IMPORT}from dilated_attention_pytorch import HierarchicalConfig\n{rest}```\n"
    new = new_text("a.md", page)
    names = [
        name.strip()
        for line in new.splitlines()
        if line.startswith("from dilated_attention_pytorch import ")
        for name in line.split(" import ")[1].split(",")
    ]
    assert names
    assert len(names) == len(set(names))


def test_name_that_the_page_does_not_import_is_reported() -> None:
    page = f"dilated_attention_pytorch\n\n```python\n{CALL}\nx = create_block_sparse_attention('hierarchical')\n```\n"
    result = migrate("a.md", page)
    assert [(entry.rule, entry.line) for entry in result.left] == [("HIER108", 4), ("HIER108", 5)]


def test_removed_names_in_magics_are_reported() -> None:
    cells = [code(IMPORT), code("%time " + CALL), code("%%bash\necho BlockSparseHierarchical"), code("!ls")]
    text = json.dumps(notebook(*cells), indent=1)
    result = migrate("a.ipynb", text)
    lines = text.splitlines()
    assert [entry.rule for entry in result.left] == ["HIER103", "HIER103"]
    assert all("BlockSparseHierarchical" in lines[entry.line - 1] for entry in result.left)


@pytest.mark.parametrize(
    ("imported", "magic", "named"),
    [
        ("HierarchicalConfig", "%timeit f(HierarchicalConfig)", "HierarchicalConfig"),
        ("HierarchicalConfig", "HierarchicalConfig?", "HierarchicalConfig"),
        ("HierarchicalConfig", "%%a_magic_of_another_package\nHierarchicalConfig()", "HierarchicalConfig"),
        ("HierarchicalConfig as H", "%prun -l 5 H()", "H"),
        ("HierarchicalConfig as H", "out = !python run.py {H.__name__}", "H"),
        ("HierarchicalConfig as H", "if True:\n    %time H()", "H"),
        ("create_block_sparse_attention as make", "%time make('hierarchical')", "'hierarchical'"),
    ],
)
@pytest.mark.parametrize("also", ["", "\nother = BlockSparseHierarchical([2048], [1])"])
def test_what_a_magic_names_stays_imported(imported: str, magic: str, named: str, also: str) -> None:
    imports = f"from dilated_attention_pytorch import BlockSparseHierarchical, {imported}{also}"
    book = notebook(code(lines(imports)), code(lines(magic)))
    result = migrate("a.ipynb", json.dumps(book, indent=1))
    assert [entry.detail for entry in result.left] == [f"{named} in a magic or a shell line"]
    assert result.new is not None
    first, second = ("".join(cell["source"]) for cell in json.loads(result.new)["cells"])
    assert imported in first.splitlines()[0]
    assert second == magic
    again = migrate_bytes("a.ipynb", result.new, Settings())
    assert (again.new, [entry.detail for entry in again.left]) == (
        None,
        [entry.detail for entry in result.left],
    )


def test_a_cell_of_another_program_keeps_no_import() -> None:
    book = notebook(code(lines(IMPORT)), code("%%bash\necho BlockSparseHierarchical"))
    new = json.loads(new_text("a.ipynb", json.dumps(book, indent=1)))
    assert new["cells"][0]["source"] == []


# ---- docstrings


def in_function(docstring: str, prefix: str = "") -> str:
    return f"def f():\n    {prefix}{DELIMITER}Doc.\n\n{textwrap.indent(docstring, '    ')}    {DELIMITER}\n"


DELIMITER = '"' * 3
EXAMPLE = f">>> {IMPORT}>>> {CALL}\n>>> model.x\n1\n"
NEW_EXAMPLE = f">>> {NEW_IMPORT}>>> " + NEW_CALL.replace("\n", "\n... ") + "\n>>> model.x\n1\n"


def test_examples_of_a_docstring() -> None:
    source = in_function(EXAMPLE) + "x = 1  # comment\n"
    assert new_text("a.py", source) == in_function(NEW_EXAMPLE) + "x = 1  # comment\n"


def test_examples_use_the_names_of_the_module() -> None:
    source = IMPORT + CALL + "\n" + in_function(f">>> {CALL}\n")
    expected = NEW_IMPORT + NEW_CALL + "\n" + in_function(">>> " + NEW_CALL.replace("\n", "\n... ") + "\n")
    assert new_text("a.py", source) == expected


def test_examples_of_two_docstrings_do_not_mix() -> None:
    other = ">>> from other import BlockSparseHierarchical\n>>> BlockSparseHierarchical()\n"
    source = in_function(EXAMPLE) + in_function(other)
    assert new_text("a.py", source) == in_function(NEW_EXAMPLE) + in_function(other)


def test_fenced_block_of_a_docstring() -> None:
    fence = "```python\n{}\n```\n"
    new = new_text("a.py", in_function(fence.format(IMPORT + CALL)))
    assert new == in_function(fence.format(NEW_IMPORT + NEW_CALL))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "x = 1", "x = 1\n", "if x:\n    pass\n# end\n\n"])
@pytest.mark.parametrize("head", ["", "\ufeff", "# coding: latin-1\nname = 'é'\n"])
def test_bytes_around_a_docstring_stay(head: str, newline: str, end: str) -> None:
    encoding = "latin-1" if "latin" in head else "utf-8"
    old, expected = (
        (head + in_function(text) + end).replace("\n", newline).encode(encoding)
        for text in (EXAMPLE, NEW_EXAMPLE)
    )
    result = migrate_bytes("a.py", old, Settings())
    assert (result.error, result.new) == (None, expected)


def test_escapes_of_a_docstring() -> None:
    example = EXAMPLE.replace("model.x", 'print("\\n")')
    piece = f'>>> {IMPORT}>>> print(BlockSparseHierarchical, "\\n")\n'
    assert migrate("a.py", in_function(piece)).left[0].rule == "HIER103"
    assert new_text("a.py", in_function(example, prefix="r")).count("SparsePatternConfig") == 2


def test_lines_of_a_docstring_are_those_of_the_file() -> None:
    source = "x = 1\n" + in_function(EXAMPLE.replace("model.x", "model.visualize_pattern()"))
    result = migrate("a.py", source)
    assert [(entry.line, entry.rule) for entry in result.left] == [(7, "HIER102")]
    assert {entry.line for entry in result.rewritten} == {5, 6}
    assert result.new is not None
    lines = result.new.decode().splitlines()
    place = result.left[0].new_line
    assert place is not None
    assert "model.visualize_pattern()" in lines[place - 1]
    assert "HIER102" in lines[place - 2]


def test_docstring_of_something_else_is_untouched() -> None:
    source = f"# dilated_attention_pytorch\nfrom other import BlockSparseHierarchical\n{in_function('>>> ' + CALL)}"
    result = migrate("a.py", source + "\n")
    assert (result.new, result.left) == (None, [])
