"""How new code is made and put in place of the old."""
