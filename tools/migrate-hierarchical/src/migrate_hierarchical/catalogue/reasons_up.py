"""The same for the group UP."""

UP_REASONS = {
    "UP101": "name of 0.2.0 without a successor: see the page on coming from 0.2.0",
    "UP102": "sparsity_ratio is the fraction kept: for 95 % sparse write 0.05",
    "UP103": "global_tokens counted blocks: write the number of tokens",
    "UP104": "the default pattern ignored sparsity_ratio: write the pattern_type that is meant",
    "UP105": "arguments that cannot be seen here: compare them with the new signature",
    "UP106": "the multihead module returns a pair, attn_mask has an effect, is_causal comes eighth: unpack its result, pass is_causal by name",
    "UP107": "names of 0.2.0 from a star import: import the new names",
    "UP108": "subclass of a class whose arguments have changed: adapt its super() calls",
    "UP109": "argument that means nothing now, but whose value does something: remove it by hand",
    "UP110": "place where the new code cannot be written: move it to a statement of its own",
    "UP111": "keyword with another name or place now, which had no effect: write the new one, or remove it",
    "UP112": "sparsity_ratio or block_size that had no effect, and replaces the pattern's now: leave it out if it shall not",
    "UP113": "member or result that the module does not have any more: see layout() and stats()",
    "UP114": "attention over several GPUs takes a DeviceMesh, a sparse_config, and q, k and v: write it anew",
}
