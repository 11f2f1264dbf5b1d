"""Builds new code and replaces the old code by it."""
