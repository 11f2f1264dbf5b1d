"""Analysis of one file: scopes, the origin of names, and which expressions use the removed API."""
