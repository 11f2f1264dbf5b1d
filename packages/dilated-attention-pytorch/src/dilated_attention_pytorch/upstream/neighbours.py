"""Keywords of other libraries' attention, and what the error of a call says to write instead.

They are those of torch's scaled_dot_product_attention, FlexAttention and flash-attn, and here those of one function in another.
A call takes them as `unknown`, which costs it a tenth of what a decorator would.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

MASK = "a mask of tokens goes into the layout, BlockLayout.from_mask(mask)"
WINDOW = "SparsePatternConfig('local_window', window_size=...)"
CHOSEN = "use BlockSparseAttention, which takes a layout; here the module chooses the blocks"
NO_DROPOUT = "delete it: decoding drops no weights"
DECODES = "delete it: decoding is causal"
OF_MODULE = {
    "scale": "use softmax_scale of the module",
    "softmax_scale": "use softmax_scale of the module",
    "dropout": "use dropout of the module",
    "dropout_p": "use dropout of the module",
    "score_mod": "use block_sparse_attention, which has softcap, alibi_slopes, sinks, block_bias and attn_bias",
    "window_size": f"use sparse_config={WINDOW} of the module",
}
OF_ALL = {
    "causal": "use is_causal",
    "attn_mask": f"{MASK}; what is added to the scores is attn_bias, padding is key_padding_mask",
    "scale": "use softmax_scale",
    "window_size": f"use a layout of {WINDOW}",
    "dropout": "use dropout_p",
    "score_mod": "use softcap, alibi_slopes, sinks, block_bias or attn_bias: docs/guides/scores.md",
    "block_mask": "use layout=BlockLayout.from_block_mask(block_mask)",
    "enable_gqa": "delete it: k and v may have fewer heads than q",
}
PACKED = {
    "attn_mask": f"{MASK}; no sequence sees another",
    "score_mod": "use softcap, alibi_slopes, sinks or block_bias: docs/guides/scores.md",
}
# What else a call says, by its name.
OF_ONE: dict[str, dict[str, str]] = {
    "block_sparse_attention_varlen": PACKED,
    "explain_backends_varlen": PACKED,
    "block_sparse_decode": {
        "causal": DECODES,
        "is_causal": DECODES,
        "attn_mask": f"{MASK}; padding is cache_lengths and kv_starts",
        "dropout": NO_DROPOUT,
        "dropout_p": NO_DROPOUT,
        "score_mod": "use softcap, alibi_slopes or sinks",
    },
    "block_sparse_sdpa": {
        "softmax_scale": "use scale",
        "window_size": f"use sparse_config={WINDOW}",
        "score_mod": "use attn_mask, which may be floating point; block_sparse_attention has softcap, alibi_slopes and sinks",
    },
    "distributed_block_sparse_attention": {
        "attn_mask": MASK,
        "score_mod": "use softcap, sinks or block_bias",
    },
    "distributed_block_sparse_attention_varlen": {
        "attn_mask": f"{MASK}; no sequence sees another",
        "score_mod": "use softcap or sinks",
    },
    "BlockSparseAttention.forward": {
        **OF_MODULE,
        "attn_mask": f"{MASK}; padding is key_padding_mask",
    },
    "BlockSparseDistributedAttention.forward": {**OF_MODULE, "attn_mask": MASK},
    "BlockSparseAdaptive.forward": {
        **OF_MODULE,
        "attn_mask": f"{CHOSEN}; padding is key_padding_mask",
        "block_mask": CHOSEN,
    },
}


def refuse_unknown(unknown: Iterable[str], who: str) -> NoReturn:
    """Raise TypeError for keywords that a call does not take, with what to write instead of those of other libraries."""
    known = {**OF_ALL, **OF_ONE.get(who, {})}
    theirs = [name for name in unknown if name in known]
    if not theirs:
        raise TypeError(f"{who}() got an unexpected keyword argument {next(iter(unknown))!r}")
    what = "".join(f"\n  {name}: {known[name]}" for name in theirs)
    raise TypeError(f"{who} takes no {', '.join(map(repr, theirs))}:{what}")
