"""Device code of the Hopper backend."""
