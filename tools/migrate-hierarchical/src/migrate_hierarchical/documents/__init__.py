"""The kinds of files: how the Python code in each is extracted, and how it is put back."""
