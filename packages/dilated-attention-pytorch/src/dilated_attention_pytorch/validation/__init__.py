"""The checks of an attention call: every message names the argument, its value and what to pass instead."""
