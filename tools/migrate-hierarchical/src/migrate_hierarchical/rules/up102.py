"""UP102: a ratio that was meant as the fraction dropped."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import is_none, string_value
from ..removed_api import FACTORY, GET_PRESET, PATTERN
from ..upstream.calls import OldCall, edits, number
from ..upstream.numbers import Numbers
from ..upstream.old_api import ADAPTIVE, BASE, CREATE_MULTIHEAD, MULTIHEAD, SPARSEST, WITH_WINDOW


@edits(PATTERN, BASE, MULTIHEAD, FACTORY, GET_PRESET, CREATE_MULTIHEAD)
def argument(call: OldCall) -> None:
    if "sparsity_ratio" in call.places and not (call.use.name == PATTERN and window_decides(call)):
        check_ratio(call, call.value("sparsity_ratio"))


def window_decides(call: OldCall) -> bool:
    """Whether the pattern is a window of fixed width, beside which a ratio has no effect; UP003 writes the default."""
    writes = call.wants("UP003") and not call.stars and not call.problem
    if call.literal("pattern_type") not in WITH_WINDOW and ("pattern_type" in call.places or not writes):
        return False
    return call.has("window_size") if "window_size" in call.places else writes


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD)
def field(call: OldCall) -> None:
    """That of a pattern given as a dictionary."""
    _, fields = call.pattern_fields()
    pattern, window = string_value(fields.get("pattern_type")), fields.get("window_size")
    fixed = pattern in WITH_WINDOW and window is not None and not is_none(window)
    if "sparsity_ratio" in fields and not fixed:
        check_ratio(call, fields["sparsity_ratio"])


def check_ratio(call: OldCall, node: cst.BaseExpression) -> None:
    high = [value for value in Numbers(call.context).of(node) if SPARSEST <= value < 1]
    if high:
        value = "" if number(node) is not None else ", " + " or ".join(f"{each:.6g}" for each in sorted(high))
        call.leave("UP102", f"sparsity_ratio={call.code(node)}{value}")
