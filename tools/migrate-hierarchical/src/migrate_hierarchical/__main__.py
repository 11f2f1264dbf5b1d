"""`python -m migrate_hierarchical`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
