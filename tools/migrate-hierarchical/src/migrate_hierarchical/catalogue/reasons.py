"""Why a use is left to a person, and what to do about it."""

REASONS = {
    "HIER101": "subclass of a removed class: subclass BlockSparseAttention, or put the pattern in a BlockLayout",
    "HIER102": "member that the new classes do not have: see stats() and plot() of BlockLayout",
    "HIER103": "removed name in a string, a magic or a shell line: change it by hand",
    "HIER104": "*args or **kwargs that may hold the arguments: pass them by name",
    "HIER105": "name that is not a literal: 'hierarchical' choices are gone, use 'base' or another preset",
    "HIER106": "value of unknown origin: pass a SparsePatternConfig as sparse_config",
    "HIER107": "name bound in several ways: keep one of the bindings",
    "HIER108": "removed name from a star import, or imported elsewhere: import the new names",
    "HIER109": "removed name used as a value: use create_block_sparse_attention or SparsePatternConfig",
    "HIER110": "argument that the base variant does not take: remove it",
    "HIER111": "call that does not fit the old signature",
    "HIER112": "place where the new call cannot be written: move it to a statement of its own",
    "HIER113": "'hierarchical' or hierarchical_config passed by name: use 'base', 'dilated_sparse' or sparse_config",
    "HIER114": "import from a module that is gone: import what remains from the package itself",
    "HIER115": "left as it is, because a file that was not given imports from here: run on both",
    "HIER116": "left as it is, because a test expects it to fail: say whether that test is still wanted",
    "HIER120": "removed name in a file that is never changed: edit it by hand",
}

# The texts of HIER109 and HIER115 for imports.
TAKEN = "removed name that others import here: change those files first"
EXPORTED = "removed name that is exported: export what replaces it"
AWAITED = "import left as it is, because a file that was not given takes it from here: run on both"
