"""Which blocks of pages and docstrings are code, and what is only reported."""

from __future__ import annotations

import textwrap

import pytest

from migrate_hierarchical.documents.prose import find_pieces
from tests.codemod.test_documents import CALL, DELIMITER, IMPORT, NEW_CALL, NEW_IMPORT, migrate, new_text

OLD, NEW = IMPORT + CALL + "\n", NEW_IMPORT + NEW_CALL + "\n"


def block(head: str, code: str, end: str = "", margin: str = "", empty: str | None = None) -> str:
    """Code with a margin between two lines; `empty` is how a line without code is written."""
    margin_of_empty = margin.rstrip() if empty is None else empty
    body = "".join(
        margin + line if line.strip() else margin_of_empty + line for line in code.splitlines(True)
    )
    return head + body + end


FENCES = {
    "byte order mark": ("\ufeff```python\n", "```\n", ""),
    "tildes": ("~~~ python\n", "~~~\n", ""),
    "attributes": ("```{.python #id}\n", "```\n", ""),
    "attributes with a blank": ("``` { .python .numberLines }\n", "```\n", ""),
    "attributes, language last": ("```{#id .numberLines .python}\n", "```\n", ""),
    "braces": ("```{python}\n", "```\n", ""),
    "braces with options": ("```{python, echo=FALSE}\n", "```\n", ""),
    "title": ('```py title="a.py" hl_lines="1"\n', "```\n", ""),
    "file name": ("```python:a.py\n", "```\n", ""),
    "options": ("```python,ignore\n", "```\n", ""),
    "capitals": ("```Python\n", "```\n", ""),
    "MyST code-block": ("```{code-block} python\n", "```\n", ""),
    "MyST code-cell": ("```{code-cell} ipython3\n", "```\n", ""),
    "MyST code-cell without a language": ("```{code-cell}\n", "```\n", ""),
    "MyST option": ("```{code-block} python\n:linenos:\n", "```\n", ""),
    "MyST options": ("```{code-cell} ipython3\n:tags: [x]\n:name: a\n\n", "```\n", ""),
    "MyST options between lines": ("```{code-cell}\n---\ntags: [x]\n---\n", "```\n", ""),
    "MyST option in a list": ("- ```{code-block} python\n  :caption: a\n", "  ```\n", "  "),
    "MyST option in a quotation": ("> ```{code-block} python\n> :caption: a\n", "> ```\n", "> "),
    "longer fence": ("````python\n", "````\n", ""),
    "list": ("- text\n\n  ```python\n", "  ```\n", "  "),
    "list, on the line of the item": ("- ```python\n", "  ```\n", "  "),
    "numbered list": ("10. ```python\n", "    ```\n", "    "),
    "nested list": ("- a\n  - b\n\n    ```python\n", "    ```\n", "    "),
    "quotation": ("> ```python\n", "> ```\n", "> "),
    "quotation in a list": ("- > ```python\n", "  > ```\n", "  > "),
    "quotation that ends without a fence": ("> ```python\n", "text\n", "> "),
    "no end": ("```python\n", "", ""),
}


@pytest.mark.parametrize("name", FENCES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_fences_of_python(name: str, newline: str) -> None:
    head, end, margin = FENCES[name]
    old, new = (block(head, code.replace("\nmodel", "\n\nmodel"), end, margin) for code in (OLD, NEW))
    assert new_text("a.md", old.replace("\n", newline)) == new.replace("\n", newline)


def with_prompts(code: str) -> str:
    """Code of statements that continue on indented lines, as a session."""
    return "".join(
        ("... " if line.startswith((" ", ")")) else ">>> ") + line for line in code.splitlines(True)
    )


@pytest.mark.parametrize(
    "info",
    [
        "",
        "text",
        "pycon",
        "python-console",
        "ipythonconsole",
        "ipython",
        "python-repl",
        "{code-block}",
        "{doctest}",
        "{code-block} python-console\n:linenos:",
    ],
)
def test_prompts_in_a_fence(info: str) -> None:
    old, new = (f"```{info}\n{with_prompts(code)}```\n" for code in (OLD, NEW))
    assert new_text("a.md", old) == new


def as_cells(code: str, more: str = "   ...:") -> str:
    """The same, as IPython shows it: one statement in each cell."""
    number, shown = 0, ""
    for line in code.splitlines(True):
        number += not line.startswith((" ", ")"))
        shown += f"{more} {line}" if line.startswith((" ", ")")) else f"In [{number}]: {line}"
    return shown


@pytest.mark.parametrize("info", ["", "python", "ipython", "ipythonconsole"])
def test_cells_of_ipython_in_a_fence(info: str) -> None:
    old, new = (
        f"```{info}\n{as_cells(code)}Out[2]: BlockSparseHierarchical(...)\n```\n" for code in (OLD, NEW)
    )
    assert new_text("a.md", old) == new


@pytest.mark.parametrize("head", ["", ".. ipython::\n\n", ".. code-block:: ipython\n\n"])
def test_cells_of_ipython_in_restructured_text(head: str) -> None:
    old, new = (head + textwrap.indent(as_cells(code), "   ") for code in (OLD, NEW))
    assert new_text("a.rst", old) == new


@pytest.mark.parametrize("more", ["   ...:", "   ....:"])
def test_a_cell_of_ipython_keeps_its_prompts(more: str) -> None:
    def session(imports: str, call: str) -> str:
        body = "".join(f"{more}     {line}" for line in (call + "\n").splitlines(True))
        return f"```python\nIn [1]: {imports}\nIn [2]: for i in range(2):\n{body}{more}\n```\n"

    assert new_text("a.md", session(IMPORT, CALL)) == session(NEW_IMPORT, NEW_CALL)


def test_magics_of_a_session_keep_the_imports_of_their_block() -> None:
    first, second = (
        f"```ipython\nIn [1]: {IMPORT}In [2]: {line}\n```\n"
        for line in (CALL, "%timeit f(BlockSparseHierarchical)")
    )
    page = f"{first}\n{second}"
    result = migrate("a.md", page)
    assert [(entry.rule, entry.line) for entry in result.left] == [("HIER103", 8)]
    assert result.new is not None
    assert result.new.decode() == f"```ipython\n{as_cells(NEW)}```\n\n{second}"


def test_prompts_in_a_shell_block_are_reported() -> None:
    result = migrate("a.md", f"```console\n{with_prompts(OLD)}```\n")
    assert (result.new, {entry.rule for entry in result.left}) == (None, {"HIER103"})


def test_prompts_of_another_language_stay() -> None:
    result = migrate("a.md", f"```js\n{with_prompts(OLD)}```\n")
    assert (result.new, result.left) == (None, [])


@pytest.mark.parametrize("empty", [">", "> ", ">  "])
def test_empty_lines_of_a_quotation_stay_as_they_are(empty: str) -> None:
    old, new = (
        block("> ```python\n", code.replace("\nm", "\n\nm"), "> ```\n", "> ", empty) for code in (OLD, NEW)
    )
    assert new_text("a.md", old) == new


def test_blanks_of_lines_that_do_not_change_stay() -> None:
    old, new = (
        block("    ```python\n", code + "\nx = 1  \n", "    ```\n", "    ", "  ") for code in (OLD, NEW)
    )
    assert new_text("a.md", old) == new


@pytest.mark.parametrize(
    "fence", ["```", "```text", "```{note}", "```{r}", "```{.bash .python-like}", "```pythonic"]
)
def test_other_fences_stay(fence: str) -> None:
    assert migrate("a.md", f"{fence}\n{OLD}```\n\n```python\n{OLD}```\n").new is not None
    result = migrate("a.md", f"dilated_attention_pytorch\n\n{fence}\n{CALL}\n```\n")
    assert (result.new, result.left) == (None, [])


def test_code_between_backticks_in_a_line_opens_no_block() -> None:
    page = f"Text ```python``` text\n```x``` more\n\n```python\n{OLD}```\n"
    assert new_text("a.md", page) == page.replace(OLD, NEW)


LITERALS = {
    "paragraph": "Usage::\n\n",
    "alone": "Text.\n\n::\n\n",
    "several empty lines": "Usage::\n\n\n\n",
    "blanks behind": "Usage::  \n\n",
    "byte order mark": "\ufeffUsage::\n\n",
    "list": "- item::\n\n",
    "code-block": ".. code-block:: python\n\n",
    "code-block with options": ".. code-block:: python\n   :linenos:\n   :caption: a\n\n",
    "code-block without a language": ".. code-block::\n\n",
    "code": ".. code:: python\n\n",
    "sourcecode": ".. sourcecode:: python3\n\n",
    "ipython3": ".. code-block:: ipython3\n\n",
    "capitals": ".. code-block:: Python\n\n",
    "directive in a list": "- .. code-block:: python\n\n",
    "jupyter-execute": ".. jupyter-execute::\n\n",
}


@pytest.mark.parametrize("name", LITERALS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_blocks_of_restructured_text(name: str, newline: str) -> None:
    old, new = (block(LITERALS[name], code, "\nText.\n", "    ") for code in (OLD, NEW))
    assert new_text("a.rst", old.replace("\n", newline)) == new.replace("\n", newline)


@pytest.mark.parametrize("head", ["Usage::\n\n", ".. code-block:: python\n\n", "~~~python\n"])
def test_blocks_of_a_docstring(head: str) -> None:
    end = "    ~~~\n" if "~" in head else ""
    head = head.replace("\n\n", "\n\n    ") if not end else "    " + head
    old, new = (
        f"def f():\n    {DELIMITER}Doc.\n\n"
        + block(("    " if not end else "") + head.rstrip(" "), code, end, "        " if not end else "    ")
        + f"    {DELIMITER}\n"
        for code in (OLD, NEW)
    )
    assert new_text("a.py", old) == new


def test_literal_blocks_share_the_names_of_the_page() -> None:
    page = block("First::\n\n", IMPORT, "\n", "    ") + block("Then::\n\n", CALL + "\n", "", "    ")
    assert NEW_CALL.splitlines()[0] in new_text("a.rst", page)


@pytest.mark.parametrize(
    ("page", "line"),
    [
        (f"Usage::\n\n    $ python\n    {IMPORT}    then more\n", 4),
        ('Usage::\n\n    $ python -c "import dilated_attention_pytorch as d; d.HierarchicalConfig()"\n', 3),
        (f".. code-block:: bash\n\n    python - <<'E'\n    {IMPORT}    E\n", 4),
    ],
)
def test_blocks_that_are_no_python_are_reported(page: str, line: int) -> None:
    result = migrate("a.rst", page)
    assert (result.new, [(entry.line, entry.rule) for entry in result.left]) == (None, [(line, "HIER103")])


@pytest.mark.parametrize("text", ["see HierarchicalConfig for more", "├── block_sparse_hierarchical.py"])
def test_prose_in_a_literal_block_is_no_use(text: str) -> None:
    result = migrate("a.rst", f"dilated_attention_pytorch::\n\n    {text}\n")
    assert (result.new, result.left) == (None, [])


@pytest.mark.parametrize("language", ["bash", "sh", "console", "shell", "{.bash}", "{code-block} bash"])
def test_python_in_a_shell_block_is_reported(language: str) -> None:
    command = 'python -c "from dilated_attention_pytorch import HierarchicalConfig"'
    heredoc = f"python3 - <<'E'\n{IMPORT}E"
    result = migrate("a.md", f"```{language}\n{command}\n```\n\n```{language}\n{heredoc}\n```\n")
    assert result.new is None
    assert [(entry.line, entry.rule) for entry in result.left] == [(2, "HIER103"), (7, "HIER103")]


def test_a_shell_block_without_python_is_no_use() -> None:
    result = migrate("a.md", "```bash\ngrep -r HierarchicalConfig dilated_attention_pytorch\n```\n")
    assert (result.new, result.left) == (None, [])


def test_many_bullets_take_no_time() -> None:
    assert find_pieces(["- " * 5000 + "x\n", " " * 100_000 + "x\n", "> " * 50_000 + "\n"], "docstring") == []
