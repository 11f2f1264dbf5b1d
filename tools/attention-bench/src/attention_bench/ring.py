"""Ring attention of torch: dense attention in its context parallelism, keys and values passed on from rank to rank."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cases import DTYPES, Case
from .peers.base import Attend


class Ring(NamedTuple):
    """Attention of a rank's tokens, the positions of these, and whether it repeats the kv heads of groups."""

    attend: Attend
    positions: Tensor
    repeats_kv_heads: bool


def ring_attention(case: Case, group: ProcessGroup, stack: ExitStack) -> Ring:
    """Ring attention of a sequence, served until `stack` is closed."""
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import _cp_options, set_rotate_method

    set_rotate_method("alltoall")  # a ring; its default gathers all keys and values before the second step
    _cp_options.enable_load_balance = case.causal  # which it has for causal attention only
    positions = torch.arange(case.seqlen, device="cuda")
    mesh = DeviceMesh.from_group(group, "cuda")
    # what a user shards: here the positions, of which each rank keeps its own
    stack.enter_context(
        context_parallel(mesh, buffers=[positions], buffer_seq_dims=[0], no_restore_buffers={positions})
    )
    repeats = case.num_kv_heads != case.heads and not serves_groups(case)
    return Ring(partial(attend_in_ring, case.causal, repeats), positions, repeats)


def attend_in_ring(is_causal: bool, repeats_kv_heads: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if repeats_kv_heads:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=gqa).transpose(1, 2)


def serves_groups(case: Case) -> bool:
    """Whether this version of torch passes on the kv heads of groups as they are: tried, the same on every rank."""
    q, k, v = (
        torch.randn(1, 256, n, case.head_dim, device="cuda", dtype=DTYPES[case.dtype], requires_grad=True)
        for n in (case.heads, case.num_kv_heads, case.num_kv_heads)
    )
    try:
        out = attend_in_ring(case.causal, False, q, k, v)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        torch.cuda.synchronize()
    except Exception:  # whatever it is, the next call says so
        return False
    return True
