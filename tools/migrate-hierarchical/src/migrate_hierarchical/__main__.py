"""`python -m migrate_hierarchical`."""

import os
import sys


def main() -> int:
    """Run the command line; Ctrl-C may come while it is being imported."""
    try:
        from .cli import main as run

        status = run()
    except KeyboardInterrupt:
        status = 130
    if status > 128:
        os._exit(status)  # at once: destructors after an interruption would print errors
    return status


if __name__ == "__main__":
    sys.exit(main())
