"""Counts in words: `1 thread`, `2 threads`."""


def counted(count: int, one: str, several: str | None = None) -> str:
    """The count with its noun; the plural is `one` with an s unless `several` is given."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
