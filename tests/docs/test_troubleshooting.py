"""The messages that docs/troubleshooting.md quotes are those that the library gives today."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import dilated_attention_pytorch
from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseMultiheadAttention,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
    block_sparse_decode,
    create_block_sparse_attention,
)
from tests.docs.fences import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
QUOTED = re.compile(r"^```\{\.text \.wrap\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def causal_layout() -> BlockLayout:
    return BlockLayout.from_config(SparsePatternConfig(), 512, causal=True)


def attend(q: Tensor, k: Tensor, **options: object) -> object:
    return create_block_sparse_attention()(q, k, k, **options)


def attend_in(layout: BlockLayout, q_len: int, kv_len: int, **options: object) -> object:
    q, k = tensor(2, q_len, 4, 32), tensor(2, kv_len, 4, 32)
    return block_sparse_attention(q, k, k, layout, **options)


def attend_to_nested() -> object:
    x = torch.nested.nested_tensor([tensor(3, 4, 32), tensor(5, 4, 32)], layout=torch.jagged)
    return attend(x, x)


def sliced_block_mask() -> object:
    whole = create_block_mask(lambda b, h, q, k: q >= k, None, None, 512, 512, device="cpu")
    return BlockLayout.from_block_mask(whole[:, :, torch.tensor([1, 2])])


def second_derivative() -> object:
    q = tensor(1, 64, 1, 32).requires_grad_()
    (grad,) = torch.autograd.grad(attend(q, q).sum(), q, create_graph=True)
    return torch.autograd.grad(grad.sum(), q)


def attend_to_packed() -> object:
    attention = BlockSparseMultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.nested.nested_tensor([tensor(40, 16), tensor(71, 16)])
    with torch.no_grad():
        return attention(x, x, x, need_weights=False)


Q = (2, 512, 4, 32)
ERRORS: dict[str, Callable[[], object]] = {
    "num_kv_heads must divide": lambda: attend(tensor(2, 4, 512, 32), tensor(2, 4, 600, 32)),
    "q must be (batch": lambda: attend(tensor(2, 512, 128), tensor(2, 512, 128)),
    "q, k and v must have one dtype": lambda: attend(tensor(*Q, dtype=torch.float16), tensor(*Q)),
    "is_causal=False needs": lambda: attend_in(causal_layout(), 512, 512),
    "layout covers queries at positions 0 to 0": lambda: attend_in(
        BlockLayout.from_config(SparsePatternConfig(), 1, 512), 1, 512, is_causal=True
    ),
    "layout covers queries at positions 0 to 511": lambda: attend_in(
        causal_layout(), 600, 600, is_causal=True
    ),
    "is_causal must be": lambda: attend(
        tensor(*Q), tensor(*Q), is_causal=torch.ones(512, 512, dtype=torch.bool)
    ),
    "key_padding_mask must": lambda: attend(
        tensor(*Q), tensor(*Q), key_padding_mask=tensor(2, 512, dtype=torch.int64)
    ),
    "key_padding_mask with": lambda: attend(
        tensor(2, 1, 4, 32),
        tensor(*Q),
        is_causal=True,
        key_padding_mask=torch.arange(512) >= torch.tensor([[300], [512]]),
    ),
    "attn_bias must be floating": lambda: attend_in(
        causal_layout(), 512, 512, is_causal=True, attn_bias=torch.ones(512, 512, dtype=torch.bool)
    ),
    "q requires grad": lambda: block_sparse_decode(
        tensor(2, 1, 4, 32).requires_grad_(),
        tensor(*Q),
        tensor(*Q),
        causal_layout(),
        torch.tensor([300, 512]).int(),
    ),
    "block_mask has": sliced_block_mask,
    "cu_seqlens_q must be": lambda: block_sparse_attention_varlen(
        *(tensor(512, 4, 32) for _ in range(3)), causal_layout(), *[torch.tensor([0, 300, 512])] * 2, 300, 300
    ),
    "q is a nested": attend_to_nested,
    "dropout must be": lambda: BlockSparseMultiheadAttention(256, 4, [2048], [1]),
    "sparsity_ratio must": lambda: SparsePatternConfig(sparsity_ratio=99),
    "segment_lengths must": lambda: create_block_sparse_attention(segment_lengths=[1000], dilation_rates=[1]),
    "variant must be": lambda: create_block_sparse_attention(variant="hilbert"),
    "variant='distributed' needs": lambda: create_block_sparse_attention(variant="distributed"),
    "variant='auto' takes": lambda: create_block_sparse_attention(embed_dim=256),
    "Hierarchical variant": lambda: create_block_sparse_attention(variant="hierarchical"),
    "`dilated_attention_pytorch.LongNet`": lambda: exec("from dilated_attention_pytorch import LongNet"),
    "`dilated_attention_pytorch.block_sparse_factory`": lambda: exec(
        "from dilated_attention_pytorch.block_sparse_factory import get_block_sparse_preset"
    ),
    "dilation_rates must divide": lambda: create_block_sparse_attention(
        segment_lengths=[128], dilation_rates=[3]
    ),
    "block_sparse_attention takes no": lambda: attend_in(causal_layout(), 512, 512, causal=True),
    "q must be float32": lambda: attend(
        tensor(2, 512, 4, 32, dtype=torch.float8_e4m3fn), tensor(2, 512, 4, 32)
    ),
    "create_block_sparse_attention takes no": lambda: create_block_sparse_attention(enable_memory_pool=True),
    "backend='triton' cannot": lambda: attend_in(causal_layout(), 512, 512, is_causal=True, backend="triton"),
    "block_sparse_attention differentiates": second_derivative,
}
WARNINGS: dict[str, Callable[[], object]] = {
    "k (2, 4, 512, 32) is read": lambda: attend(tensor(2, 4, 512, 32), tensor(2, 4, 512, 32)),
    "with sparsity_ratio": lambda: BlockLayout.from_config(
        SparsePatternConfig(sparsity_ratio=0.01, min_blocks=1), 4096, causal=True
    ),
    "sparsity_ratio 0.1 has no effect": lambda: dilated_attention_pytorch.get_block_sparse_preset(
        "local", sparsity_ratio=0.1
    ),
    "window_size=256 has no effect": lambda: SparsePatternConfig(window_size=256),
    "sparsity_ratio 0.95 keeps": lambda: SparsePatternConfig(sparsity_ratio=0.95),
    "packed sequences have": attend_to_packed,
}


def quoted() -> list[str]:
    """The messages of the page, each on one line."""
    return [" ".join(text.split()) for text in QUOTED.findall(PAGE.read_text("utf-8"))]


def quoted_as(beginning: str) -> str:
    """The one quoted message that begins so."""
    (found,) = [text for text in quoted() if text.startswith(beginning)]
    return found


def assert_quoted(quote: str, message: str) -> None:
    """A quote that ends in ... is the beginning of the message."""
    if quote.endswith("..."):
        assert message.startswith(quote.removesuffix("...").rstrip())
    else:
        assert quote == message


def test_every_quoted_message_is_tried() -> None:
    beginnings = [*ERRORS, *WARNINGS]
    untried = [text for text in quoted() if not text.startswith(tuple(beginnings))]
    assert not untried
    assert len(quoted()) == len(beginnings) >= 20


@pytest.mark.parametrize("beginning", ERRORS)
def test_error_is_quoted_as_it_is_raised(beginning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    quote = quoted_as(beginning)
    with pytest.raises((ValueError, TypeError, RuntimeError, ImportError)) as error:
        ERRORS[beginning]()
    assert_quoted(quote, str(error.value))


@pytest.mark.parametrize("beginning", WARNINGS)
def test_warning_is_quoted_as_it_is_given(beginning: str) -> None:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        WARNINGS[beginning]()
    (message,) = (text for text in (str(each.message) for each in given) if text.startswith(beginning))
    assert_quoted(quoted_as(beginning), message)
