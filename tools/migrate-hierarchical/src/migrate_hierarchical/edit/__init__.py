"""Builds new code and puts it in place of the old."""
