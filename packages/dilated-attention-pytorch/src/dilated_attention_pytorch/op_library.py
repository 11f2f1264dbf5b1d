"""The library of the custom operators, and how one is defined."""

from __future__ import annotations

from typing import Any

import torch

NAMESPACE = "dilated_attention_pytorch"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str) -> Any:
    """The operator of a schema, ``name(arguments) -> results``."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name, _, _ = schema.partition("(")
    return getattr(getattr(torch.ops, NAMESPACE), name).default
