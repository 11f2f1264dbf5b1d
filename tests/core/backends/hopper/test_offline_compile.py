"""The Hopper kernels compile with no GPU present, fit a multiprocessor, and none of their products wait for no reason."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dilated_attention_pytorch.launching.installed import installed_versions, release
from tests.core.environment import EVERY_SHAPE, without_interpreter

VERSION = release(next(iter(installed_versions("triton")), "0.0")) or (0, 0)
pytestmark = pytest.mark.skipif(VERSION < (3, 6), reason="needs triton 3.6 or newer")

SCRIPT = Path(__file__).parents[4] / "tools" / "kernel-checks" / "hopper_offline_compile.py"
SHARED = 227 * 1024  # bytes that a program may use
# Bytes of a multiprocessor's shared memory, of that what a program takes beside its own, registers, threads of a program.
MULTIPROCESSOR, RESERVED, REGISTERS, THREADS = 228 * 1024, 1024, 65_536, 384
# Bytes spilled per thread over a whole kernel, by the oldest Triton with such a compiler: plain, and with token dilation. A
# spilled accumulator would be 256 and more. Until 3.7 (ptxas 12.8) the dilated dkdv pass spills addresses and places within
# its loop; 3.8 has ptxas 12.9, and 3.9 has 13.4.
MOST_SPILLS = {
    (3, 6): {"forward": (40, 56), "dq": (0, 12), "dkdv": (56, 350), "single": (184, 0), "fixed": (112, 0)},
    (3, 8): {"forward": (16, 8), "dq": (0, 0), "dkdv": (8, 8), "single": (340, 0), "fixed": (340, 0)},
    (3, 9): {"forward": (16, 8), "dq": (0, 40), "dkdv": (8, 8), "single": (340, 0), "fixed": (340, 0)},
}
MOST_OF_TWO_COLUMNS = 64  # of the single pass of blocks of 64
# By the larger of head_dim and that of v: where dq takes 96 or 128 registers; around the loops.
MOST_MORE = {192: 240, 256: 32}
# With positions, masks and the like: beside them in the loops, addresses and numbers of a tile around them.
MOST_WIDE_SPILLS = 400
# What ptxas says when it makes every product wait for the one before, or one of them (C7517).
SERIALISED = {"C7510", "C7511", "C7512", "C7513", "C7514", "C7517"}
KNOWN_TO_BE_SERIALISED: set[tuple[str, int, int]] = set()  # kernel, head_dim, block_size


def most_spills(item: dict[str, Any]) -> int:
    """At rate 16 the loading warp makes a tile of eight entries and more, and waits for memory anyway."""
    if 16 in item["rates"] and item["kernel"] != "dkdv":
        return 256
    if item["kernel"] == "single" and item["block_size"] == 64:
        return MOST_OF_TWO_COLUMNS
    of_kernel = "dkdv" if item["kernel"] == "dv" else item["kernel"]
    more = MOST_MORE.get(max(item["head_dim"], item["v_head_dim"] or 0), 0)
    if item["features"]:
        return MOST_WIDE_SPILLS + 2 * more
    of_kernel = "single" if of_kernel in ("ranges", "turns") else of_kernel
    plain, dilated = MOST_SPILLS[max(since for since in MOST_SPILLS if since <= VERSION)][of_kernel]
    return dilated if item["rates"] else plain + more


def compiled() -> list[dict[str, Any]]:
    environment = without_interpreter()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *(["--every"] if EVERY_SHAPE else [])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def pairs(shapes: set[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Every two values of a shape, with their places in it."""
    return {pair for shape in shapes for pair in itertools.combinations(enumerate(shape), 2)}


def test_kernels_compile_and_keep_to_the_resources() -> None:
    found = compiled()
    assert [item for item in found if "error" in item] == []
    shapes = {(item["kernel"], item["head_dim"], item["block_size"], item["is_causal"]) for item in found}
    causal, dilated_dims = ((False, True), (64, 128)) if EVERY_SHAPE else ((True,), (128,))
    dims = (64, 128, 192, 256) if EVERY_SHAPE else (64, 128, 256)
    wanted = set(itertools.product(["forward", "dq", "dkdv"], dims, (64, 128), causal))
    if EVERY_SHAPE:
        assert wanted | set(itertools.product(["dv"], dims[2:], (64, 128), causal)) <= shapes
    else:
        assert pairs(wanted) <= pairs(shapes)
        assert any(kernel == "dv" for kernel, *_ in shapes)
    assert any(item["head_dim"] == 192 and item["v_head_dim"] == 128 for item in found)
    dilated = {(item["kernel"], item["head_dim"]) for item in found if item["rates"]}
    assert dilated == set(itertools.product(["dkdv", "dq", "forward"], dilated_dims))
    assert {item["kernel"] for item in found if item["grad_lse"]} == {"dq"}
    assert {item["dtype"] for item in found} == {"bfloat16", "float16"}
    assert [item for item in found if item["shared"] > SHARED] == []
    together = [item for item in found if item["programs"] > 1]
    assert {(item["head_dim"], item["block_size"]) for item in together} == {(64, 64), (64, 128)}
    for item in together:
        assert item["programs"] * (item["shared"] + RESERVED) <= MULTIPROCESSOR, item
        assert item["programs"] * THREADS * item["registers"] <= REGISTERS, item
    assert [item for item in found if item["spills"] > most_spills(item)] == []
    assert [item for item in found if item["faults"]] == []
    serialised = [item for item in found if SERIALISED & set(item["warnings"])]
    places = {(item["kernel"], item["head_dim"], item["block_size"]) for item in serialised}
    assert places <= KNOWN_TO_BE_SERIALISED, serialised
