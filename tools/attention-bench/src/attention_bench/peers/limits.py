"""Limits: what a peer can serve, and in words why it cannot serve a case."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from ..cases import Case


@dataclass(frozen=True)
class Limits:
    """What a peer for a GPU serves; None is no limit.

    blocks: block sizes. head_dims: of q and k. grouped: fewer kv heads than heads. v_dims: v of another head_dim. ragged:
    lengths that are no multiple of the block. windows: windows exact to the token. decode: a single query.
    """

    blocks: tuple[int, ...] | None = None
    head_dims: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] = ("float16", "bfloat16")
    causal: bool = False
    grouped: bool = False
    v_dims: bool = False
    batched: bool = True
    ragged: bool = False
    windows: bool = False
    decode: bool = False

    def rejects(self, case: Case, device: str, why_missing: Callable[[], str | None]) -> str | None:
        """Why a case is not served, or why the peer is missing; without a GPU both."""
        why_not = self.why_not(case, device)
        if why_not is None:
            return why_missing()
        missing = why_missing() if device != "cuda" else None
        return why_not if missing is None else f"{why_not}, and is {missing}"

    def why_not(self, case: Case, device: str) -> str | None:
        """Why a case is not served; None if it is."""
        if device != "cuda":
            return "needs a CUDA device"
        if case.segment_lengths is not None:
            return "no token dilation: its lists hold whole blocks"
        if case.decode and not self.decode:
            return "no decoding: its lists are of whole blocks of queries"
        if case.causal and not self.causal:
            return "no causal masks"
        if case.window is not None and not self.windows:
            return "no windows that are exact to the token: its lists hold whole blocks"
        return self._why_not_sizes(case)

    def _why_not_sizes(self, case: Case) -> str | None:
        if self.blocks is not None and case.block not in self.blocks:
            return f"needs blocks of {either(self.blocks)}, got {case.block}"
        if self.head_dims is not None and case.head_dim not in self.head_dims:
            return f"needs head_dim {either(self.head_dims)}, got {case.head_dim}"
        if case.num_v_dims != case.head_dim and not self.v_dims:
            return f"needs v with the head_dim of q, {case.head_dim}, got {case.num_v_dims}"
        if case.num_kv_heads != case.heads and not self.grouped:
            return f"needs as many kv heads as heads, {case.heads}, got {case.num_kv_heads}"
        if case.dtype not in self.dtypes:
            return f"needs {either(self.dtypes)}, got {case.dtype}"
        if case.batch != 1 and not self.batched:
            return f"needs batch 1, got {case.batch}"
        if case.seqlen % case.block and not self.ragged:
            return f"needs whole blocks of {case.block}, got {case.seqlen} tokens"
        return None


def either(choices: tuple[object, ...]) -> str:
    """Choices in words: `64`, `64 or 128`, `64, 96 or 128`."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last


def not_installed(module: str, packages: str) -> str | None:
    """Why a module cannot be imported, and the packages that have it; None if it can."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # also of what it imports
        text = str(error).splitlines()
        return f"not installed ({text[0] if text else type(error).__name__}): pip install {packages}"
    return None
