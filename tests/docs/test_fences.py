"""The finder of examples sees what a reader sees."""

from __future__ import annotations

from pathlib import Path

from tests.docs.fences import find_python_fences

PAGE = """\
Text.

```python title="After"
a = 1
```

=== "Tab"

    ```py
    if a:
        b = 2
    ```

```bash
not python
```

~~~{.python}
c = 3
~~~
"""


def test_titles_tabs_and_tildes_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    fences = find_python_fences(page)
    assert [(fence.line, fence.title) for fence in fences] == [(4, "After"), (10, ""), (19, "")]
    assert fences[1].code == "if a:\n    b = 2\n"
