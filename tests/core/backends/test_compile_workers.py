"""Kernels that other processes compile: what a forward expects of its backward, and that it is found on the disk."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from dilated_attention_pytorch.backends import compile_worker
from dilated_attention_pytorch.backends.hopper import REFUSED_TRITON
from dilated_attention_pytorch.environment_settings import COMPILE_WORKERS
from tests.core.environment import without_interpreter

TOOLS = Path(__file__).parents[3] / "tools" / "kernel-checks"
pytestmark = pytest.mark.skipif(
    REFUSED_TRITON is not None and "TRITON_INTERPRET" not in REFUSED_TRITON, reason=str(REFUSED_TRITON)
)


def answer_of(code: str, folder: Path) -> Any:
    """The JSON that code prints in a process of its own."""
    environment = without_interpreter()
    environment |= {"TRITON_CACHE_DIR": str(folder), "DILATED_ATTENTION_COMPILE_WORKERS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=TOOLS, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_forward_with_gradients_asks_for_the_kernels_of_its_backward(tmp_path: Path) -> None:
    code = """
        import json, os, sys
        sys.path.insert(0, "")
        import torch, triton
        from count_compilations import Compilations
        from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
        from dilated_attention_pytorch.backends.hopper import HOPPER
        from dilated_attention_pytorch.functional import make_problem

        layout = BlockLayout.from_config(SparsePatternConfig(block_size=128, sparsity_ratio=0.4), 256)
        asked = []
        os.environ["DILATED_ATTENTION_BACKWARD_SUMS"] = "off"
        for requires_grad in (False, True):
            q, k, v = (torch.zeros(1, 256, 2, 64, dtype=torch.bfloat16) for _ in range(3))
            p = make_problem(q.requires_grad_(requires_grad), k, v, layout).prepared_by(HOPPER, layout)
            for grads in ([], [(torch.zeros_like(q), None)]):
                triton.knobs.runtime.jit_cache_hook = found = Compilations()
                HOPPER.compile_for(p, (9, 0), grads)
                asked.append({name: len(keys) for name, keys in found.keys.items() if "order" not in name})
        os.environ["DILATED_ATTENTION_BACKWARD_SUMS"] = "auto"
        triton.knobs.runtime.jit_cache_hook = found = Compilations()
        HOPPER.compile_for(p, (9, 0), [(torch.zeros_like(q), None)])
        asked.append({name: len(keys) for name, keys in found.keys.items() if "order" not in name})
        print(json.dumps(asked))
    """
    forward, both, expecting, both_again, of_any_size = answer_of(code, tmp_path)
    assert forward == {"hopper forward_kernel": 1}
    assert len(both) == 3
    assert set(both.values()) == {1}
    # and asks for nothing that the backward then does not want
    assert expecting == both == both_again
    # a large call may have the single pass, and what runs before and after it
    assert set(both) < set(of_any_size)
    assert len(of_any_size) == len(both) + 4
    assert set(of_any_size.values()) == {1}


def test_what_a_worker_has_compiled_is_found_on_the_disk(tmp_path: Path) -> None:
    code = """
        import json
        import torch, triton
        from dilated_attention_pytorch.backends import compile_workers
        from dilated_attention_pytorch.backends.compile_only import Target, recorded
        from dilated_attention_pytorch.backends.gap_kernel import clear_gaps_kernel

        triton.runtime.driver.set_active(Target((8, 0)))
        x, table = torch.zeros(1, 64, 1, 16), torch.zeros(1, 5, dtype=torch.int32)
        numbers = {name: 16 for name in clear_gaps_kernel.arg_names if name.islower()}
        constants = {"START": 0, "X_DIM": 16, "Y_DIM": 16, "PADDED": 16, "PACKED": True, "TOKENS": 16, "PARTS": 2}
        constants["PARTS_OF_HEADS"] = 1
        arguments = {"X": x, "Y": None, "Lse": None, "Table": table, **numbers, **constants}
        options = {"num_warps": 4}
        seen = []
        for _ in range(2):  # the second time it is on the disk
            with recorded() as found:
                compile_workers.compile_beside(clear_gaps_kernel, arguments, options)
                compiled = clear_gaps_kernel.warmup(grid=(1,), **arguments, **options)
                compiled = compiled.result() if hasattr(compiled, "result") else compiled
            seen.append([made.from_disk for made in found])
            clear_gaps_kernel.device_caches.clear()
        os_env = __import__("os").environ
        os_env["DILATED_ATTENTION_COMPILE_WORKERS"] = "0"
        with recorded() as found:
            compile_workers.compile_beside(clear_gaps_kernel, arguments, options)
        print(json.dumps([*seen, len(found), len(compile_workers.WORKERS[0].threads)]))
    """
    assert answer_of(code, tmp_path) == [[True], [True], 0, 1]


@pytest.mark.parametrize(
    ("setting", "cores", "expected"),
    [(None, 8, 2), (None, 3, 1), (None, 2, 0), ("auto", 8, 2), ("", 8, 2), ("0", 8, 0), ("3", 2, 3)],
)
def test_number_of_workers(
    setting: str | None, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_workers = pytest.importorskip("dilated_attention_pytorch.backends.compile_workers")
    monkeypatch.setattr(compile_workers.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv(COMPILE_WORKERS.name, raising=False)
    if setting is not None:
        monkeypatch.setenv(COMPILE_WORKERS.name, setting)
    assert compile_workers.n_workers() == expected


def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_workers = pytest.importorskip("dilated_attention_pytorch.backends.compile_workers")
    for name in (COMPILE_WORKERS.name, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compile_workers.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert compile_workers.n_workers() > 0
    monkeypatch.setattr(compile_workers.sys, "frozen", True, raising=False)
    assert compile_workers.n_workers() == 0


def test_a_worker_takes_no_module_from_its_own_folder(tmp_path: Path) -> None:
    folder = Path(compile_worker.__file__).parent
    (tmp_path / "link").symlink_to(folder)
    others = [str(folder.parent), str(folder / "hopper"), str(tmp_path)]
    for own in ([], [str(folder)], [str(tmp_path / "link")]):  # none with PYTHONSAFEPATH=1
        assert compile_worker.without_this_folder([*own, *others]) == others


def test_a_kernel_is_compiled_where_it_is_wanted_if_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_workers = pytest.importorskip("dilated_attention_pytorch.backends.compile_workers")

    def start(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    class Kernel:
        def warmup(self, **_: Any) -> None:
            compile_workers.workers().give(None)

    monkeypatch.setenv(COMPILE_WORKERS.name, "1")
    monkeypatch.setattr(compile_workers, "WORKERS", [])
    monkeypatch.setattr(compile_workers.threading.Thread, "start", start)
    compile_workers.compile_beside(Kernel(), {}, {})
    assert compile_workers.workers().threads == []  # so the next one is tried again
    assert compile_workers.workers().jobs.empty()


def test_another_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_workers = pytest.importorskip("dilated_attention_pytorch.backends.compile_workers")
    monkeypatch.setenv(COMPILE_WORKERS.name, "yes")
    with pytest.raises(ValueError, match=r"COMPILE_WORKERS must be .* got 'yes'"):
        compile_workers.n_workers()
