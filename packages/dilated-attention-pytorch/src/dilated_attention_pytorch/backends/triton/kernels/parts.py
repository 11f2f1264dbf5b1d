"""What the functions of a kernel pass to one another, by name.

Each is made where it is passed: Triton makes tensors of the constants in a tuple that is assigned to a name. What a call has
not is None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# ---- arguments of the kernels


class Positions(NamedTuple):
    """Where the queries and keys of a call are, and which of their blocks the layout has. None for a plain batch.

    The kernels take its fields as arguments: in a tuple, Triton would compile them anew for 1 and for multiples of 16.
    """

    max_rows: Any  # tiles of a sequence begin in so many rows, and columns
    max_cols: Any
    q_tokens: Any  # of q, and of k and v, in memory
    kv_tokens: Any
    q_position: Any  # of query 0, where there is no table
    first_grid_row: Any  # of the layout
    grid_rows: Any
    grid_cols: Any
    list_heads: Any  # heads with lists of their own in every sequence; 0: all sequences share the lists


# What a kernel is not compiled anew for, be it 1, a multiple of 16 or aligned: nothing is read faster for it. The tensors of
# the tokens are not among them: their rows are read in pieces of 16 bytes where they begin at one.
UNSPECIALISED = (
    *Positions._fields,
    *(f"stride_{tensor}{axis}" for tensor in "qkvogxy" for axis in "bsh"),
    "stride_bb", "stride_bh", "stride_be", "stride_pb", "stride_ps", "stride_lb", "stride_lh", "stride_ls",
    "q_len", "kv_len", "q_offset", "first_row", "n_rows", "n_cols", "num_heads", "group", "heads_per_list", "has_edge",
    "n_slots", "slot_sequences", "slot_heads", "threshold",
    "Lse", "Delta", "GradLse", "Offsets", "Indices", "Entries", "Table", "Bias", "GradBias", "KvLengths", "Padding", "Seed",
    "Slopes", "Sinks", "SinkSums",
)  # fmt: skip


class Masks(NamedTuple):
    """The masks inside blocks. The entries of a list without a mask come first."""

    Ids: Any  # the mask of every entry, or -1
    Splits: Any  # where the entries with a mask begin in every list
    Table: Any


class AttnBias(NamedTuple):
    """The bias of every pair of tokens."""

    base: Any
    stride_b: Any
    stride_h: Any
    stride_q: Any
    stride_k: Any


# ---- made in the kernels


class Sizes(NamedTuple):
    """Constants: the sizes of blocks and tiles."""

    HEAD_DIM: Any
    V_HEAD_DIM: Any
    BLOCK_D: Any  # HEAD_DIM and V_HEAD_DIM up to a power of two
    BLOCK_DV: Any
    BLOCK_SIZE: Any
    BLOCK_M: Any  # queries of a tile
    BLOCK_N: Any  # keys of a tile


class Options(NamedTuple):
    """Constants of a kernel over rows: what the call has."""

    IS_CAUSAL: Any
    HAS_BIAS: Any
    HAS_PADDING: Any
    DROPOUT: Any
    SCALE_POSITIVE: Any
    PRECISION: Any


class ColumnOptions(NamedTuple):
    """Constants of a kernel over columns: what the call has."""

    IS_CAUSAL: Any
    EVEN_Q: Any  # with QUERIES_FIRST: no row of blocks begins before its first query or ends behind its last
    HAS_BIAS: Any
    DROPOUT: Any
    PRECISION: Any
    QUERIES_FIRST: Any  # scores are (BLOCK_M, BLOCK_N), see dkdv_step
    KEY_STRIDE: Any


class Scores(NamedTuple):
    """How a score is made of a product."""

    scale_log2: Any
    scale_over_cap: Any  # softcap
    cap_log2: Any
    slope_log2: Any  # alibi_slopes
    attn_bias: Any
    EXACT_TANH: Any


class PairBias(NamedTuple):
    """The bias of every pair of tokens, of one head; keys are counted by position."""

    base: Any
    stride_q: Any
    stride_k: Any


class Blocks(NamedTuple):
    """A list of blocks: entries lo to hi. Those from split on have a mask."""

    Indices: Any
    Entries: Any
    lo: Any
    hi: Any
    split: Any
    masks: Any


class Queries(NamedTuple):
    """The tile of queries of a program over rows."""

    position0: Any  # of the first
    position: Any
    query: Any  # in memory
    m_in: Any  # which count
    head: Any


class QueryValues(NamedTuple):
    """What the backward reads of a tile of queries."""

    q: Any
    grad_out: Any
    lse: Any
    delta: Any


class Keys(NamedTuple):
    """The keys that a program over rows may see, by position: those below kv_valid."""

    k_base: Any
    v_base: Any
    stride_ks: Any
    stride_vs: Any
    kv_valid: Any
    has_edge: Any  # not 0: some query may see a part of an active block, or none of it
    BEYOND: Any  # the layout may have columns that the call has not


class Column(NamedTuple):
    """The tile of keys of a program over columns."""

    k: Any
    v: Any
    key: Any  # position
    n_in: Any  # which count
    first_key: Any
    last_key: Any


class Rows(NamedTuple):
    """The queries that may see a column: those from q_begin to q_end in memory."""

    q_base: Any
    grad_base: Any
    lse_base: Any
    delta_base: Any
    stride_qs: Any
    stride_gs: Any
    first_row: Any
    q_offset: Any
    q_begin: Any
    q_end: Any
    has_edge: Any  # not 0: the call may have a part of a row of blocks, or none of it
    BEYOND: Any  # the layout may have rows that the call has not


class BlockBias(NamedTuple):
    """The block bias of one head."""

    base: Any
    stride_be: Any
    gradient: Any  # where the kernel over rows writes its sums


class KeyPadding(NamedTuple):
    """The padding mask, and the batch element that a program reads of it."""

    mask: Any
    i_batch: Any
    stride_pb: Any
    stride_ps: Any


class Dropout(NamedTuple):
    """What decides which weights are dropped."""

    Seed: Any
    sequence_head: Any
    threshold: Any
    keep_scale: Any


class Pairs(NamedTuple):
    """The pairs of a tile of scores; all of them broadcast to it."""

    key: Any  # position
    position: Any
    query: Any  # in memory
    inside: Any  # both are tokens of the call
    visible: Any
    bias: Any


class Sums(NamedTuple):
    """The sums of an online softmax: out before it is divided, the largest score, the sum of the weights."""

    acc: Any
    m: Any
    l: Any


class KeyGradients(NamedTuple):
    """Sums over the queries that see a tile of keys."""

    dk: Any
    dv: Any
