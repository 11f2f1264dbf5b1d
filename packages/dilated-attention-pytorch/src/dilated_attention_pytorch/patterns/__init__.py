"""Patterns: config and lengths -> pairs of blocks. Index arithmetic only."""
