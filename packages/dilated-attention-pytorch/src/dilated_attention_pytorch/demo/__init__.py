"""The demo: the same small model with four kinds of attention, on a task that needs distant blocks."""
