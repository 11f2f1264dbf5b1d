"""What a file means: scopes, where names come from, which expressions are uses of the removed API."""
