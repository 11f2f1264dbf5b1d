"""The kernels of the exchange give what its CPU definitions give; Triton's interpreter runs them."""

from __future__ import annotations

import pytest
import torch

from dilated_attention_pytorch.distributed import exchange
from dilated_attention_pytorch.distributed.local_layout import Returned

device_exchange = pytest.importorskip("dilated_attention_pytorch.distributed.device_exchange")


@pytest.mark.parametrize("lengths", [[32, 32, 32], [32, 7, 32, 1, 20]], ids=["whole blocks", "short blocks"])
def test_returned_gradients_are_added_to_their_tokens(lengths: list[int]) -> None:
    torch.manual_seed(0)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    sent = [[0, 1], [1, len(lengths) - 1], []]  # of each rank, the blocks that it returns
    tokens = [torch.arange(starts[i], starts[i + 1]) for of_rank in sent for i in of_rank]
    first = torch.tensor([0, *[x.numel() for x in tokens]]).cumsum(0).tolist()
    by_block: list[list[int]] = [[] for _ in lengths]
    for place, block in enumerate([i for of_rank in sent for i in of_rank]):
        by_block[block].append(first[place])
    where = Returned(
        indptr=torch.tensor([0, *[len(x) for x in by_block]]).cumsum(0).int(),
        starts=torch.tensor([x for of_block in by_block for x in of_block]).int(),
        tokens=torch.cat(tokens),
        own_starts=starts.int(),
        by_rank=tuple(sum(lengths[i] for i in of_rank) for of_rank in sent),
        block_size=32,
    )
    n_heads, dim = 3, 24
    own = torch.randn(2, int(starts[-1]), n_heads, dim)
    returned = torch.randn(first[-1], 2, n_heads, 2 * dim)[..., :dim].transpose(0, 1)
    expected, made = torch.empty_like(own), torch.full_like(own, torch.nan)
    exchange.add_returned(own, returned, where, expected)
    device_exchange.launch_add_returned(own, returned, where, made)
    assert made.equal(expected)
    by_hand = own.clone()
    for i, token in enumerate(where.tokens.tolist()):
        by_hand[:, token] += returned[:, i]
    torch.testing.assert_close(made, by_hand, rtol=1e-6, atol=1e-6)  # three float32 sums
