"""UP112: sparsity_ratio and block_size beside a pattern, which counted alone."""

from __future__ import annotations

from ..removed_api import FACTORY, GET_PRESET
from ..upstream.calls import OldCall, edits
from ..upstream.old_api import ADAPTIVE, BASE, CREATE_MULTIHEAD, MULTIHEAD


@edits(BASE, MULTIHEAD, ADAPTIVE, FACTORY, GET_PRESET, CREATE_MULTIHEAD)
def shorthands(call: OldCall) -> None:
    has_pattern = call.use.name == GET_PRESET or call.has("sparse_config", "sparsity_config")
    given = [name for name in ("sparsity_ratio", "block_size") if call.has(name)]
    if not has_pattern:  # the classes took no block_size
        given = [name for name in given if name == "block_size" and call.use.name in (BASE, MULTIHEAD)]
    if given:
        call.leave("UP112", ", ".join(f"{name}={call.code(call.value(name))}" for name in given))
