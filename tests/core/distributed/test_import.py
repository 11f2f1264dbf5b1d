"""What an import of the package asks of torch.distributed: nothing, and that it works without it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dilated_attention_pytorch import DistributedSparseConfig

# torch.distributed of such a build of torch has no process groups: `is_available` looks for these.
WITHOUT_DISTRIBUTED = """
from importlib.machinery import ExtensionFileLoader

make = ExtensionFileLoader.exec_module

def without(self, module):
    make(self, module)
    if module.__name__ == "torch._C":
        for name in ("_c10d_init", "_rpc_init", "_dist_autograd_init", "_faulty_agent_init"):
            if hasattr(module, name):
                delattr(module, name)

ExtensionFileLoader.exec_module = without
"""


def printed(program: str) -> list[str]:
    """The lines that a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_import_loads_no_more_of_torch_distributed_than_torch_does() -> None:
    """DTensor, FSDP and functional collectives take longer to import than the whole package."""
    program = """
import sys, torch
before = set(sys.modules)
import dilated_attention_pytorch
print(*sorted(name for name in set(sys.modules) - before if name.startswith("torch.distributed")))
print("dilated_attention_pytorch.distributed.module" in sys.modules)
"""
    assert printed(program) == ["", "True"]


def test_without_torch_distributed_the_names_exist_and_say_what_is_missing() -> None:
    program = """
import torch
from dilated_attention_pytorch import *
from dilated_attention_pytorch import __all__

print(torch.distributed.is_available(), all(name in globals() for name in __all__))
q = torch.randn(1, 100, 2, 16)
print(tuple(create_block_sparse_attention()(q, q, q).shape))
for make in (
    lambda: DistributedSparseConfig(None),
    lambda: create_block_sparse_attention(distributed_config={"mesh": None}),
    lambda: BlockSparseDistributedAttention(distributed_config={"mesh": None}),
):
    try:
        make()
    except RuntimeError as error:
        print(error)
sharding = SequenceSharding.make([[(0, 1)], [(1, 2)]], 100, 64, rank=1)
print(tuple(shard_sequence(q, sharding).shape))
"""
    missing = "DistributedSparseConfig needs torch.distributed, which this build of torch does not have; "
    missing += "one process needs no mesh: use BlockSparseAttention"
    assert printed(WITHOUT_DISTRIBUTED + program) == [
        "False True", "(1, 100, 2, 16)", missing, missing, missing, "(1, 36, 2, 16)"
    ]  # fmt: skip


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_mesh_without_a_process_group_says_how_to_make_one() -> None:
    with pytest.raises(
        TypeError, match=r"mesh must be a DeviceMesh or a ProcessGroup, got 4; use .*init_device_mesh"
    ):
        DistributedSparseConfig(4)  # type: ignore[arg-type]
