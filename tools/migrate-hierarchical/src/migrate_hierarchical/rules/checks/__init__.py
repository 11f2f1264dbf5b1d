"""Checks of a whole file after the uses in it: they report what no rule has decided, and rewrite nothing."""
