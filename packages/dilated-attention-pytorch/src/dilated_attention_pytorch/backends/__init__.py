"""Backends: one problem, several ways to compute it. They never import one another."""
