"""Kinds of files: how the Python in each is found and put back."""
