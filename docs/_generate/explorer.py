"""The data of the pattern explorer: layouts, densities and reach that the library itself computed."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path

import numpy as np

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.config import PATTERN_TYPES, takes

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.25)
BLOCKS = (64, 128)
LENGTHS = (4096, 16_384)


def entry(pattern: str, ratio: float, block: int, length: int, causal: bool) -> dict[str, object]:
    tokens = block if takes(pattern, "global_tokens") else 0
    config = SparsePatternConfig(pattern, block, ratio, global_tokens=tokens)
    layout = BlockLayout.from_config(config, length, causal=causal)
    mask, stats = layout.to_dense().numpy(), layout.stats()
    return {
        "n": int(mask.shape[0]),
        "blocks": layout.num_active_blocks,
        "density": stats.density,
        "asked": stats.asked_density,
        "floor": stats.rows_at_floor,
        "reach": stats.reach,
        "coverage": [layout.coverage(layers) for layers in (1, 2, 3)],
        "hops": layout.hops_to_full_coverage(),
        "bits": base64.b64encode(np.packbits(mask)).decode(),
    }


def write(markdown: Path, assets: Path) -> None:
    data = {
        "|".join(map(str, (pattern, ratio, block, length, int(causal)))): entry(
            pattern, ratio, block, length, causal
        )
        for pattern, ratio, block, length, causal in itertools.product(
            PATTERN_TYPES, RATIOS, BLOCKS, LENGTHS, (False, True)
        )
    }
    (assets / "layouts.json").write_text(json.dumps(data), "utf-8")
    choices = "".join(f"<option>{pattern}</option>" for pattern in PATTERN_TYPES)
    (markdown / "explorer-patterns.html").write_text(
        f'<label>Pattern <select name="pattern">{choices}</select></label>\n', "utf-8"
    )
