"""Layouts of modules: built once for what differs, shared, bounded, safe with threads, forks, modes and CUDA graphs."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
    caching,
)
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.layout import cache
from dilated_attention_pytorch.layout.cache import LAYOUTS, LayoutCache, Pattern
from tests.core.backends.hopper.cases import work_order

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    LAYOUTS.clear(captured=True)
    yield
    LAYOUTS.clear(captured=True)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The lengths of every layout whose lists were built."""
    seen: list[tuple[int, int]] = []
    real = BlockLayout.from_config

    def noting(config: Any, q_len: int, kv_len: int, *others: Any) -> BlockLayout:
        seen.append((q_len, kv_len))
        return real(config, q_len, kv_len, *others)

    monkeypatch.setattr(BlockLayout, "from_config", noting)
    return seen


def config(ratio: float = 0.3, block_size: int = 64) -> SparsePatternConfig:
    return SparsePatternConfig(sparsity_ratio=ratio, block_size=block_size)


def qkv(length: int, kv_len: int | None = None, requires_grad: bool = False) -> list[Tensor]:
    lengths = (length, *[length if kv_len is None else kv_len] * 2)
    return [torch.randn(1, n, 2, 16, requires_grad=requires_grad) for n in lengths]


# ---- what differs


@pytest.mark.parametrize("decoding", [False, True], ids=["training", "decoding"])
def test_consecutive_lengths_share_their_lists(decoding: bool, builds: list[tuple[int, int]]) -> None:
    module = BlockSparseAttention(config())
    for length in range(64, 704):
        q_len = 1 if decoding else length
        layout = module.layout(q_len, length, causal=True)
        assert (layout.q_len, layout.kv_len, layout.causal) == (q_len, length, True)
    assert len(builds) == 11


def test_steps_of_decoding_share_a_layout_and_give_the_rows_of_the_full_forward(
    builds: list[tuple[int, int]],
) -> None:
    module = BlockSparseAttention(config(block_size=16))
    q, k, v = qkv(100)
    full = module(q, k, v, is_causal=True)
    builds.clear()
    for step in range(100):
        found = module(q[:, step : step + 1], k[:, : step + 1], v[:, : step + 1], is_causal=True)
        torch.testing.assert_close(found, full[:, step : step + 1])
    assert builds == [(1, 1), (1024, 1024)]


def test_a_thousand_steps_of_decoding_build_two_layouts(builds: list[tuple[int, int]]) -> None:
    module = BlockSparseAttention(config(block_size=16))
    q, k, v = qkv(1500)
    for length in range(500, 1500):
        module(q[:, :1], k[:, :length], v[:, :length], is_causal=True)
    assert builds == [(1024, 1024), (1024, 2048)]


def test_chunk_of_whole_blocks_has_a_layout_of_its_own_which_every_backend_serves(
    builds: list[tuple[int, int]],
) -> None:
    module = BlockSparseAttention(config(block_size=16))
    q, k, v = qkv(200)
    for first, end in ((96, 200), (96, 112), (96, 111), (97, 200)):
        module(q[:, first:end], k[:, :end], v[:, :end], is_causal=True)
    assert builds == [(104, 200), (16, 112), (1024, 1024)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [
        config(block_size=16),
        SparsePatternConfig("local_window", 16, window_size=50),
        SparsePatternConfig("global_local", 16, 0.3, global_tokens=20),
        (config(0.2, 16), config(0.9, 16)),
    ],
    ids=["dilated", "window", "global", "per_head"],
)
def test_layout_of_shared_lists_is_the_layout_of_its_lengths(pattern: Any, causal: bool) -> None:
    module = BlockSparseAttention(pattern)
    dilation = TokenDilation((16, 32), (1, 4))
    for q_len, kv_len in [(50, 50), (64, 64), (49, 64), (1, 64), (1, 50), (33, 50), (70, 50), (64, 49)]:
        found, expected = (
            module.layout(q_len, kv_len, causal),
            BlockLayout.from_config(pattern, q_len, kv_len, causal),
        )
        assert found.grid == expected.grid
        assert found.num_heads == expected.num_heads
        assert work_order(found).tolist() == work_order(expected).tolist()
        for lists, others in zip(found.lists(dilation), expected.lists(dilation), strict=True):
            assert lists.indptr.tolist() == others.indptr.tolist()
            assert lists.indices.tolist() == others.indices.tolist()
            assert lists.block_ids.tolist() == others.block_ids.tolist()
        assert found.stats() == expected.stats()


def test_what_is_made_from_the_lists_is_shared_too() -> None:
    module, dilation = BlockSparseAttention(config()), TokenDilation((64,), (4,))
    first, second = module.layout(65), module.layout(128)
    assert first is not second
    assert first.row_lists is second.row_lists
    assert first.lists(dilation) is second.lists(dilation)
    assert work_order(first) is work_order(second)


def test_shared_lists_do_not_serve_tensors_of_another_length() -> None:
    module = BlockSparseAttention(config())
    long, short = module.layout(128), module.layout(65)
    block_sparse_attention(*qkv(128), long)
    with pytest.raises(ValueError, match="layout covers queries at positions 0 to 64"):
        block_sparse_attention(*qkv(128), short)


# ---- who shares


def test_modules_with_equal_configs_share_layouts(builds: list[tuple[int, int]]) -> None:
    modules = [BlockSparseAttention(config()) for _ in range(12)]
    for module in modules:
        module(*qkv(100))
    assert builds == [(100, 100)]
    BlockSparseAttention(config(0.4))(*qkv(100))
    BlockSparseAttention([config(), config()])(*qkv(100))
    assert len(builds) == 3


def test_clearing_drops_the_layouts_of_one_config_for_all_modules(builds: list[tuple[int, int]]) -> None:
    module, equal, other = (BlockSparseAttention(config(ratio)) for ratio in (0.3, 0.3, 0.4))
    kept = other.layout(100)
    equal.layout(100)
    builds.clear()
    module.clear_cache()
    assert other.layout(100) is kept
    equal.layout(100)
    assert builds == [(100, 100)]


def test_layouts_die_when_they_are_dropped() -> None:
    module = BlockSparseAttention(config())
    alive = weakref.ref(module.layout(100))
    module(*qkv(100))  # leaves a plan
    gc.collect()
    gc.disable()
    try:
        module.clear_cache()
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_carry_no_layouts(how: Callable[[Any], Any]) -> None:
    module = BlockSparseAttention(config(), [64, 128], [1, 2])
    size = len(pickle.dumps(module))
    module(*qkv(1000))
    assert len(pickle.dumps(module)) == size
    tensors = qkv(100)
    assert torch.equal(how(module)(*tensors), module(*tensors))


def test_ratio_that_no_float_writes_survives(builds: list[tuple[int, int]]) -> None:
    from fractions import Fraction

    third = SparsePatternConfig(sparsity_ratio=Fraction(1, 3))  # type: ignore[arg-type]
    assert Pattern.of(third).configs() == [third]


# ---- bounds


def test_least_recently_used_lists_go_first(builds: list[tuple[int, int]]) -> None:
    layouts, pattern = LayoutCache(max_lists=3), Pattern.of(config())

    def find(n_blocks: int) -> BlockLayout:
        return layouts.find(pattern, 64 * n_blocks, 64 * n_blocks, False, CPU)

    kept = find(1)
    for n_blocks in (2, 3):
        find(n_blocks)
    assert find(1) is kept  # used again
    find(4)  # in the place of 2
    assert find(1) is kept
    builds.clear()
    find(3)
    assert builds == []
    find(2)
    assert builds == [(128, 128)]


def test_bytes_are_bounded_but_for_the_newest() -> None:
    pattern = Pattern.of(config(1.0, 16))
    layouts = LayoutCache(max_bytes=100_000)
    sizes = []
    for n_blocks in range(30, 50):
        layout = layouts.find(pattern, 16 * n_blocks, 16 * n_blocks, False, CPU)
        work_order(layout)
        sizes.append(sum(lists.num_bytes() for lists in layouts._by_blocks.values()))
    # the newest entry may have grown since it was added
    assert max(sizes) <= 100_000 + 2 * 49 * 49 * 24
    huge = layouts.find(pattern, 16 * 200, 16 * 200, False, CPU)
    assert layouts.find(pattern, 16 * 200, 16 * 200, False, CPU) is huge
    assert len(layouts._by_blocks) == 1


def test_number_of_lengths_is_bounded() -> None:
    layouts, pattern = LayoutCache(max_lengths=16), Pattern.of(config())
    often = layouts.find(pattern, 1, 64, True, CPU)
    for kv_len in range(1, 64):
        layouts.find(pattern, 1, kv_len, True, CPU)
        assert layouts.find(pattern, 1, 64, True, CPU) is often
        assert len(layouts._by_lengths) <= 16


# ---- CUDA graphs


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a stream is being captured, as far as the cache sees; layouts look as on a GPU."""
    state = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state[0])
    real = cache.Lists.__init__

    def as_on_a_gpu(self: Any, *args: Any) -> None:
        real(self, *args)
        self.may_be_captured = True

    monkeypatch.setattr(cache.Lists, "__init__", as_on_a_gpu)
    return state


def test_layouts_of_a_cuda_graph_stay(capturing: list[bool]) -> None:
    layouts, pattern = LayoutCache(max_lists=2, max_bytes=1), Pattern.of(config())

    def find(n_blocks: int) -> BlockLayout:
        return layouts.find(pattern, 64 * n_blocks, 64 * n_blocks, False, CPU)

    captured = find(1)
    capturing[0] = True
    assert find(1) is captured
    capturing[0] = False
    for n_blocks in range(2, 9):
        find(n_blocks)
    layouts.clear()
    layouts.clear(pattern)
    assert find(1).row_lists is captured.row_lists
    layouts.clear(captured=True)
    assert find(1).row_lists is not captured.row_lists


# ---- threads


def test_threads_share_layouts() -> None:
    module = BlockSparseAttention(config(block_size=16), [16, 32], [1, 2])
    inputs = {length: qkv(length) for length in range(20, 60)}
    expected = {length: module(*tensors) for length, tensors in inputs.items()}
    module.clear_cache()
    failures: list[Exception] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(60):
                length = choose.randrange(20, 60)
                assert torch.equal(module(*inputs[length]), expected[length])
                if choose.random() < 0.05:
                    module.clear_cache()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_threads_build_a_layout_once(builds: list[tuple[int, int]]) -> None:
    module, found = BlockSparseAttention(config(block_size=16)), []
    ready = threading.Barrier(8)

    def work() -> None:
        ready.wait()
        found.append(module.layout(3000))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [(3000, 3000)]
    assert len(set(map(id, found))) == 1


def test_lists_are_made_by_another_thread_where_a_graph_may_own_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: no thread may wait for the one that waits for it, and errors reach the caller."""
    makers: list[int] = []

    def apart(device: torch.device, make: Callable[[], Any]) -> Any:
        def noting() -> Any:
            makers.append(threading.get_ident())
            return make()

        return caching.in_another_thread(noting)

    for module in (cache, caching):
        monkeypatch.setattr(module, "make_to_stay", apart)
    module, dilation = BlockSparseAttention(config()), TokenDilation((64, 128), (1, 4))
    done: list[bool] = []

    def work() -> None:
        layout = module.layout(300)
        work_order(layout, dilation)
        done.append(True)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(60)
    assert done == [True]
    assert worker.ident not in makers
    assert len(makers) == 3  # the layout, its lists and its work order
    with pytest.raises(ZeroDivisionError):
        caching.in_another_thread(lambda: 1 // 0)


# ---- inference mode


def dense_in_inference_mode(length: int) -> BlockLayout:
    return BlockLayout.from_dense(torch.ones(3, 3, dtype=torch.bool), 16, length, length)


MADE: dict[str, Callable[[int], BlockLayout]] = {
    "from_config": lambda length: BlockLayout.from_config(config(block_size=16), length),
    "from_dense": dense_in_inference_mode,
    "module": lambda length: BlockSparseAttention(config(block_size=16)).layout(length),
    "pickle": lambda length: pickle.loads(
        pickle.dumps(BlockLayout.from_config(config(block_size=16), length))
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_layout_made_in_inference_mode_serves_training(name: str) -> None:
    with torch.inference_mode():
        layout = MADE[name](40)
    torch.compiler.reset()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, layout)

    tensors = qkv(40, requires_grad=True)
    expected = torch.autograd.grad(attend(*tensors).sin().sum(), tensors)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*tensors).sin().sum(), tensors), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


# ---- on a GPU


@pytest.mark.gpu
def test_compiled_cuda_graphs_serve_changing_lengths() -> None:
    torch.compiler.reset()
    module = BlockSparseAttention(config(), [64, 128], [1, 2])
    compiled = torch.compile(module, mode="reduce-overhead")
    for _ in range(3):
        for length in (200, 300, 260):
            tensors = [x.cuda().bfloat16().requires_grad_() for x in qkv(length)]
            torch.compiler.cudagraph_mark_step_begin()
            out = compiled(*tensors, is_causal=True)
            found = [out.clone(), *torch.autograd.grad(out.float().square().sum(), tensors)]
            out = module(*tensors, is_causal=True)
            expected = [out, *torch.autograd.grad(out.float().square().sum(), tensors)]
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
def test_captured_layout_outlives_the_bounds_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LAYOUTS, "max_lists", 2)
    module = BlockSparseAttention(config())
    tensors = [x.cuda().bfloat16() for x in qkv(300)]
    expected = module(*tensors).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(*tensors)
    for length in range(400, 1400, 100):
        module(*(x.cuda().bfloat16() for x in qkv(length)))
    module.clear_cache()
    torch.cuda.empty_cache()
    garbage = [torch.full((2**18,), 2**30, dtype=torch.int32, device="cuda") for _ in range(64)]
    graph.replay()
    torch.testing.assert_close(out, expected)
    del garbage
