"""Entry point; checks that the library to be timed is installed before it is imported."""

from __future__ import annotations

import sys

INSTALL = "in a clone of the repository: pip install ./packages/dilated-attention-pytorch"


def library_problem() -> str | None:
    """Why the installed library cannot be timed, and how to fix it; None if it can."""
    try:
        import dilated_attention_pytorch as library
    except ModuleNotFoundError as error:
        if error.name != "dilated_attention_pytorch":
            raise
        return f"dilated_attention_pytorch is not installed; {INSTALL}"
    missing = [name for name in ("BlockLayout", "block_sparse_attention") if not hasattr(library, name)]
    if missing:
        return (
            f"dilated_attention_pytorch in {getattr(library, '__file__', None)} has no {' and no '.join(missing)}: "
            f"it is a package of another project with the same name, or too old; replace it, {INSTALL}"
        )
    return None


def main() -> int:
    """Run the command line; exit status 2 if there is no library to time."""
    try:
        problem = library_problem()
        if problem is not None:
            print(f"attention-bench: {problem}", file=sys.stderr)
            return 2
        from .cli import main as run
    except KeyboardInterrupt:
        print("attention-bench: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
