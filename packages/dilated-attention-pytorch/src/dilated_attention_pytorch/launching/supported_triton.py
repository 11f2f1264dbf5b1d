"""The releases of Triton that this library is tested with: their launchers (raw_launch.py) and their experimental language, Gluon."""

from __future__ import annotations

from .installed import release

OLDEST_TRITON = (3, 6)
# Both are private or experimental, and change from release to release.
NEWEST_TRITON = (3, 9)

OLDEST, NEWEST = (".".join(map(str, each)) for each in (OLDEST_TRITON, NEWEST_TRITON))
# what pip is to install
NOT_OLDER = f"triton>={OLDEST}"
NOT_NEWER = f"triton<{NEWEST_TRITON[0]}.{NEWEST_TRITON[1] + 1}"


def is_supported(version: str) -> bool:
    """Whether a version is one of these releases."""
    return OLDEST_TRITON <= (release(version) or (0, 0)) <= NEWEST_TRITON
