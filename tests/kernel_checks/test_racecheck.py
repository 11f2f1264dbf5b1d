"""What racecheck.py makes of the output of the tool: only the two reports of the controls are passed over."""

from __future__ import annotations

import pytest
from racecheck import HAND_OVER, PASSING_ON, SOURCES, UNKNOWN, kind_of, reports_in, unexplained


def line_of(file: str, text: str) -> int:
    """The number of the first line of a kernel file that contains a text."""
    return next(i for i, line in enumerate((SOURCES / file).read_text().splitlines(), 1) if text in line)


def report(*accesses: tuple[str, str, str]) -> str:
    """A report as the tool words it; accesses as kind, file, text of the line."""
    lines = [
        f"{kind} access at some_kernel+0x{i}d0 in {file}:{line_of(file, text)}"
        for i, (kind, file, text) in enumerate(accesses)
    ]
    first, *others = lines
    rest = "".join(f"=========     and {line} [4 hazards]\n" for line in others)
    return f"========= Error: Race reported between {first}\n{rest}========= \n"


HANDED_OVER = report(
    ("Read", "backward.py", "def backward_kernel("),
    ("Write", "backward.py", "def backward_kernel("),
    ("Write", "backward.py", "gl.warp_specialize("),
)
PASSED_ON = report(
    ("Write", "tile_scheduler.py", "queue.numbers.index(place).store("),
    ("Read", "tile_scheduler.py", "return gl.max(queue.numbers"),
)
RACES = {
    "tiles": report(
        ("Write", "backward_step.py", "lse = streams.lse.index("),
        ("Read", "backward_step.py", "delta = streams.delta.index("),
    ),
    "read_is_written": report(
        ("Write", "tile_scheduler.py", "return gl.max(queue.numbers"),
        ("Read", "tile_scheduler.py", "queue.numbers.index(place).store("),
    ),
    "start_and_loop": report(
        ("Read", "backward.py", "def backward_kernel("),
        ("Write", "backward_loads.py", "streams.lse.index(stage).store("),
    ),
    "start_of_no_kernel": report(
        ("Read", "backward.py", "def consumer("), ("Write", "backward.py", "def consumer(")
    ),
}


@pytest.mark.parametrize(("text", "kind"), [(HANDED_OVER, HAND_OVER), (PASSED_ON, PASSING_ON)])
def test_reports_of_the_controls_are_told_by_their_places(text: str, kind: str) -> None:
    (found,) = reports_in(
        f"========= COMPUTE-SANITIZER\n{text}========= RACECHECK SUMMARY: 1 hazard displayed\n"
    )
    assert kind_of(found) == kind


@pytest.mark.parametrize("name", RACES)
def test_any_other_report_is_left(name: str) -> None:
    text = HANDED_OVER + RACES[name] + PASSED_ON
    assert len(reports_in(text)) == 3
    (left,) = unexplained(text, {HAND_OVER, PASSING_ON})
    assert kind_of(left) == UNKNOWN


def test_a_kind_that_no_control_shows_is_left() -> None:
    (left,) = unexplained(HANDED_OVER + PASSED_ON, {HAND_OVER})
    assert kind_of(left) == PASSING_ON
