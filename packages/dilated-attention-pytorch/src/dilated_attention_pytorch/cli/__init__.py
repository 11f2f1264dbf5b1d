"""The commands of `python -m dilated_attention_pytorch`, one file each, and what they have in common."""
