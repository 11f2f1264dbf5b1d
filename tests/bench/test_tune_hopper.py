"""Candidates of the Hopper kernels, without the GPU that would time them."""

from __future__ import annotations

import pytest
import torch

from attention_bench import tune_hopper
from attention_bench.tune_hopper import candidates, replaced, search, written
from dilated_attention_pytorch.backends.hopper import tuning
from dilated_attention_pytorch.backends.hopper.tuning import BackwardTiles, ForwardTiles

SHAPES = [(kernel, *key) for kernel, table in tune_hopper.TABLES.items() for key in table]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_candidates_begin_with_the_entry_of_the_table(shape: tuple[str, int, int]) -> None:
    found = candidates(shape)
    assert found[0] == tune_hopper.table_of(shape)[shape[1:]]
    assert len(found) == len(set(found)) > 1


def test_candidates_fit_the_shared_memory() -> None:
    # q takes 32 KiB a slot, a stage of k or v 32 KiB with tiles of 128 keys: seven together fit 227 KiB
    places = {
        (tiles.slots, tiles.k_stages, tiles.v_stages)
        for tiles in candidates(("forward", 128, 128))
        if isinstance(tiles, ForwardTiles) and tiles.tile == 128
    }
    assert places == {(1, 2, 2), (1, 3, 2), (1, 3, 3), (2, 2, 2), (2, 3, 2)}
    both = [tiles for tiles in candidates(("forward", 64, 64)) if isinstance(tiles, ForwardTiles)]
    assert all(tiles.k_stages == tiles.v_stages for tiles in both)
    assert max(tiles.k_stages for tiles in both if tiles.programs == 2) == 6
    assert {(tiles.tile, tiles.slots) for tiles in candidates(("dq", 64, 128))} == {
        (64, 1), (64, 2), (128, 1), (128, 2)
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_of_the_table_fit_too(shape: tuple[str, int, int]) -> None:
    kernel, head_dim, block = shape
    tiles = tune_hopper.table_of(shape)[shape[1:]]
    assert tune_hopper.shared_bytes(kernel, tiles, head_dim, block) <= tune_hopper.SHARED_KIB * 1024


def test_tiles_are_written_as_in_the_table() -> None:
    for shape in SHAPES:
        for tiles in candidates(shape):
            assert eval(written(tiles)) == tiles
    assert written(BackwardTiles(64, 3, 1, True)) == "BackwardTiles(64, 3, 1, True)"
    forward = ForwardTiles(6, 6, 1, "none", 64, programs=2)
    assert written(forward) == 'ForwardTiles(6, 6, 1, "none", 64, programs=2)'


def tiles_of(stages: int) -> ForwardTiles:
    return ForwardTiles(stages, stages, 1, "intra_warpgroup", 64)


@pytest.mark.parametrize("key", [(128, 128), (96, 128)])
def test_table_is_restored_when_a_candidate_fails(key: tuple[int, int]) -> None:
    pytest.importorskip("triton.experimental.gluon")
    before = dict(tuning.FORWARD)

    def fail() -> None:
        with replaced(("forward", *key), tiles_of(8)):
            assert tuning.FORWARD[key] == tiles_of(8)
            raise RuntimeError("out of resources")

    with pytest.raises(RuntimeError, match="out of resources"):
        fail()
    assert before == tuning.FORWARD


def test_search_prints_why_a_candidate_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def time(tiles: object) -> float:
        if tiles == tiles_of(4):
            raise RuntimeError("out of resource: shared memory\nand more")
        return {tiles_of(2): 2.0, tiles_of(3): 1.0}[tiles]  # type: ignore[index]

    tried = [tiles_of(stages) for stages in (2, 3, 4, 5)]
    failures = {tiles_of(5): "RuntimeError: does not compile"}
    timed = search(("forward", 64, 64), tried, failures, time)
    assert timed == [(1.0, tiles_of(3)), (2.0, tiles_of(2))]
    assert capsys.readouterr().out.splitlines() == [
        f"('forward', 64, 64) {written(tiles_of(4))}: RuntimeError: out of resource: shared memory",
        f"('forward', 64, 64) {written(tiles_of(5))}: RuntimeError: does not compile",
    ]


def test_wrong_result_is_not_timed() -> None:
    good = (torch.ones(4), torch.ones(4))
    tune_hopper.check(good, good)
    with pytest.raises(RuntimeError, match=r"result 1 is off by 1\.0e\+00"):
        tune_hopper.check((good[0], torch.zeros(4)), good)
