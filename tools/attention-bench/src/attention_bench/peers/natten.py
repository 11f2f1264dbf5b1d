"""NATTEN's neighborhood attention in one dimension, for causal windows that are exact to the token: elsewhere its edges differ
from ours."""

from __future__ import annotations

from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from ..cases import Case
from .base import Attend
from .limits import Limits, not_installed

LIMITS = Limits(
    head_dims=(32, 64, 128, 256),
    dtypes=("float32", "float16", "bfloat16"),
    causal=True,
    ragged=True,
    windows=True,
)


class Natten:
    name = "natten"
    heads_first = False
    dense = False

    def rejects(self, case: Case, device: str) -> str | None:
        if (
            device == "cuda"
            and LIMITS.why_not(case, device) is None
            and (case.window is None or not case.causal)
        ):
            return "needs a causal window that is exact to the token: --causal --window TOKENS"
        return LIMITS.rejects(case, device, lambda: not_installed("natten", "natten"))

    def prepare(self, case: Case, layout: BlockLayout) -> Attend:
        from natten import na1d

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = na1d(q, k, v, kernel_size=case.window, is_causal=True)
            return out

        return attend


NATTEN = Natten()
