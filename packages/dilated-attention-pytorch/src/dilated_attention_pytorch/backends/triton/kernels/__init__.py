"""Device code of the Triton backend."""
