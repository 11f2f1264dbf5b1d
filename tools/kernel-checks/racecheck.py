"""Run compute-sanitizer's racecheck on every Hopper kernel; fail for any report except two kinds of false positives.

    python tools/kernel-checks/racecheck.py [WORDS]

WORDS select calls, as in sanitize_hopper.py. racecheck does not understand
    hand-over   `barrier.sync 1` at the line of `gl.warp_specialize`, which separates the write and the read of the byte by
                which Triton tells the other warps their partition;
    passing on  the barrier of a warpgroup that has read the numbers of a tile (tile_scheduler.py: `read_number`), after which
                one thread arrives for all of them at the barrier that the writer (`write_number`) waits for.
racecheck_control.py has both in kernels that do nothing else. They run first, and a report is ignored only if its kind is
reported there too: nothing is ignored with a racecheck that understands them.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE.parents[1] / "packages/dilated-attention-pytorch/src/dilated_attention_pytorch"
SOURCES = LIBRARY / "backends/hopper/kernels"
# Without the last option racecheck does not conclude from "A before B" and "B before C" that A is before C.
RACECHECK = [
    "compute-sanitizer", "--tool", "racecheck", "--racecheck-indirect-barrier-dependency", "--print-limit", "100000",
]  # fmt: skip
ACCESS = re.compile(
    r"\b(?:Race reported between|and) (Read|Write) access at (\S+?)\+0x[0-9a-f]+ in ([\w.]+):(\d+)"
)
HAND_OVER, PASSING_ON, UNKNOWN = "hand-over", "passing on", "unknown"
# The functions that pass numbers on, in the kernels and in the control.
PASSING = [
    {("Write", "write_number"), ("Read", "read_number")},
    {("Write", "writer"), ("Read", "reader")},
]


@dataclass(frozen=True)
class Access:
    """One side of a report."""

    kind: str  # Read or Write
    kernel: str
    file: str
    line: int


def reports_in(output: str) -> list[list[Access]]:
    """The accesses of every report."""
    reports: list[list[Access]] = []
    for line in output.splitlines():
        found = ACCESS.search(line)
        if "Race reported between" in line:
            reports.append([])
        if found and reports:
            kind, kernel, file, number = found.groups()
            reports[-1].append(Access(kind, kernel, file, int(number)))
    return reports


def place_of(access: Access) -> str:
    """The function of an access; "start" for the beginning of a kernel and its `warp_specialize`."""
    path = next((folder / access.file for folder in (HERE, SOURCES) if (folder / access.file).exists()), None)
    if path is None:
        return UNKNOWN
    for function in ast.parse(path.read_text()).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        if not first <= access.line <= (function.end_lineno or 0):
            continue
        specialised = [
            node.lineno
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "gl.warp_specialize"
        ]
        in_head = access.line < function.body[0].lineno
        is_start = specialised and (in_head or access.line in specialised)
        return "start" if is_start else function.name
    return UNKNOWN


def kind_of(report: list[Access]) -> str:
    """The kind of a report."""
    places = {(access.kind, place_of(access)) for access in report}
    if report and {place for _, place in places} == {"start"}:
        return HAND_OVER
    return PASSING_ON if places in PASSING else UNKNOWN


def unexplained(output: str, known: set[str]) -> list[list[Access]]:
    """The reports that are of none of the known kinds."""
    return [report for report in reports_in(output) if kind_of(report) not in known]


def checked(script: str, *words: str) -> str:
    """The reports of racecheck on a script; exits with a message if that fails."""
    command = [*RACECHECK, sys.executable, str(HERE / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode or "RACECHECK SUMMARY" not in output:
        sys.exit(f"{script} {' '.join(words)} failed with exit status {done.returncode}:\n{output[-3000:]}")
    return output


def main(words: list[str]) -> int:
    """Exit status 1 for a report that the controls do not have."""
    controls = [checked("racecheck_control.py", which) for which in ("exchange", "ring")]
    known = {kind_of(report) for output in controls for report in reports_in(output)} - {UNKNOWN}
    output = checked("sanitize_hopper.py", *words)
    reports = reports_in(output)
    print(*(line for line in output.splitlines() if not line.startswith("=====")), sep="\n")
    print(f"{len(reports)} reports; shown by the controls and ignored: {', '.join(sorted(known)) or 'none'}")
    left = unexplained(output, known)
    for report in left:
        print("race:", *(f"{a.kind} in {a.kernel}, {a.file}:{a.line}" for a in report), sep="\n    ")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
