"""The CPU backend, in plain PyTorch.

Five methods compute the same result of a plain batch; `choice.py` chooses one of them per call:

    decode.py       one layout row, as in decoding: its keys are gathered once, head by head
    one_call.py     small problems: all rows in one kernel call, or a few, with a mask that is cached with the layout
    row_by_row.py   one kernel call per row: gathered blocks stay in place for the next rows
    row_batches.py  short rows and layouts per head: rows with equally many keys are computed as one batch; also masks
                    inside blocks, alibi_slopes and attn_bias, where there are several rows
    unfused.py      block_bias, softcap, dropout, token dilation, v_head_dim other than head_dim, gradients of lse, and
                    masks where a row is alone or not all is finite

Around them, parts.py divides a call that is no plain batch into plain problems on views of its tensors, except for a batch
of single queries, which single_queries.py computes together; sinks.py adds sinks to the results.

Decoding from a cache is that too (cache_problem.py), or single_queries.py with pages; cache_decode.py serves what is left.

All but `unfused` call PyTorch's fused kernel (fused_kernel.py) on gathered keys. None of them copies more of k and v
than the active blocks.
"""

from __future__ import annotations

from .backend import CPU, CpuBackend

__all__ = ["CPU", "CpuBackend"]
