"""The demo: four attentions in the same small model, on a task that needs the far blocks."""
