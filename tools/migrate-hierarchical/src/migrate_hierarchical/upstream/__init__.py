"""The group UP: what code for upstream's version 0.2.0 says that means something else now."""
