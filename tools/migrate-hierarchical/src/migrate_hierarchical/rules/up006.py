"""UP006: token dilation that had no effect then and has one now."""

from __future__ import annotations

import libcst as cst

from ..removed_api import FACTORY, GET_PRESET
from ..upstream.calls import OldCall, edits, number
from ..upstream.old_api import (
    ADAPTIVE,
    BASE,
    CREATE_ADAPTIVE,
    CREATE_MULTIHEAD,
    MULTIHEAD,
    STILL_IN_PLACE,
    TOKEN_DILATION,
)

RULE = "UP006"


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD, CREATE_ADAPTIVE)
def token_dilation(call: OldCall) -> None:
    if not call.wants(RULE) or call.problem or (not call.renames_function and may_stay(call)):
        return
    for name in TOKEN_DILATION:
        if name in call.places:
            call.remove(RULE, name, "had no effect and is removed")


def may_stay(call: OldCall) -> bool:
    """Whether the arguments have no effect now either, and no other parameter has taken their places."""
    in_place = STILL_IN_PLACE[call.use.name]
    given = [name for name in TOKEN_DILATION if name in call.places]
    by_name = (call.call.args[call.places[name]].keyword is not None or name in in_place for name in given)
    return has_no_effect(call) and all(by_name)


def has_no_effect(call: OldCall) -> bool:
    """Whether all rates are 1, which drops no key."""
    if "dilation_rates" not in call.places:
        return False
    rates = call.value("dilation_rates")
    return isinstance(rates, cst.List | cst.Tuple) and all(
        number(element.value) == 1 for element in rates.elements
    )
