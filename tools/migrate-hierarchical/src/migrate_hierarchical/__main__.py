"""`python -m migrate_hierarchical`."""

import os
import sys


def main() -> int:
    """Run the command line, which may be interrupted while it is imported."""
    try:
        from .cli import main as run

        status = run()
    except KeyboardInterrupt:
        status = 130
    if status > 128:
        os._exit(status)  # at once: what was interrupted halfway would complain in its destructors
    return status


if __name__ == "__main__":
    sys.exit(main())
