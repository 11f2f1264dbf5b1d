"""Other libraries: what they are given is our mask, and they say why they cannot serve a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from attention_bench import measure
from attention_bench.cases import RANDOM, Case
from attention_bench.peers import PEERS, ours
from attention_bench.peers.block_lists import block_lists, block_mask
from attention_bench.peers.fa4 import up_to_the_query
from attention_bench.peers.limits import Limits, either, not_installed
from dilated_attention_pytorch import BlockLayout
from tests.bench import stub_peers

DILATED = Case(256, 4, 16, 16, 0.3, dtype="float32")
PER_HEAD = replace(DILATED, pattern=RANDOM)
WINDOW = replace(DILATED, pattern="local_window", causal=True, window=37)
CAUSAL = replace(DILATED, causal=True, kv_heads=2, batch=2)
SERVED: dict[str, tuple[Callable[[pytest.MonkeyPatch], Any], list[Case]]] = {
    "bsa": (stub_peers.bsa, [DILATED, PER_HEAD, replace(PER_HEAD, kv_heads=2, batch=2)]),
    "bsa-2-splits": (stub_peers.bsa, [PER_HEAD]),
    "bsa-one-bucket": (stub_peers.bsa, [PER_HEAD]),
    "vsa": (stub_peers.vsa, [DILATED, PER_HEAD, replace(PER_HEAD, batch=2)]),
    "flashinfer": (stub_peers.flashinfer, [DILATED, PER_HEAD, replace(PER_HEAD, kv_heads=2)]),
    "natten": (stub_peers.natten, [WINDOW, replace(WINDOW, batch=2)]),
    "fa4": (stub_peers.fa4, [DILATED, PER_HEAD, WINDOW, CAUSAL, replace(CAUSAL, pattern=RANDOM)]),
    "flex": (lambda monkeypatch: None, [replace(PER_HEAD, kv_heads=2, block=128, density=0.5)]),
    "ours-unordered": (lambda monkeypatch: None, [DILATED]),
}
FORWARD_ONLY = ("flashinfer", "flex")  # flex has no backward on a CPU


@pytest.fixture(autouse=True)
def without_kept_functions() -> Any:
    up_to_the_query.cache_clear()
    yield
    up_to_the_query.cache_clear()


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, (_, cases) in SERVED.items() for case in cases]
)
def test_peer_is_given_our_mask(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    install, _ = SERVED[name]
    install(monkeypatch)
    layout, peer = case.layout("cpu"), PEERS[name]

    def results(of: str) -> list[torch.Tensor]:
        peer = PEERS[of]
        inputs = [x.transpose(1, 2).contiguous() if peer.heads_first else x for x in case.inputs("cpu")]
        grad = case.grad_out("cpu")
        if name in FORWARD_ONLY:
            out = peer.prepare(case, layout)(*inputs)
            return [out.transpose(1, 2) if peer.heads_first else out]
        inputs = [x.requires_grad_() for x in inputs]
        out = peer.prepare(case, layout)(*inputs)
        grads = torch.autograd.grad(out, inputs, grad.transpose(1, 2) if peer.heads_first else grad)
        return [x.transpose(1, 2) if peer.heads_first else x for x in (out, *grads)]

    for found, expected in zip(results(name), results("ours"), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not peer.dense


def test_settings_of_bsa_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub_peers.bsa(monkeypatch)
    layout = PER_HEAD.layout("cpu")
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in PER_HEAD.inputs("cpu"))
    for name in ("bsa", "bsa-2-splits"):
        PEERS[name].prepare(PER_HEAD, layout)(q, k, v).sum().backward()
    forward, backward, with_splits, of_one_bucket = calls
    assert (forward["kv_splits"], backward["bucket_size_blocks"]) == (1, None)
    assert (with_splits["kv_splits"], of_one_bucket["bucket_size_blocks"]) == (2, 16)
    # rows of the same length are told as one number, so that it can choose its splits
    assert forward["block_sparse_num"] == PER_HEAD.blocks_per_row == 4
    assert "q2k_block_nums" not in forward


def test_unordered_mode_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        ours, "block_sparse_attention", lambda *_, **options: asked.append(options.get("deterministic"))
    )
    for name in ("ours", "ours-unordered"):
        PEERS[name].prepare(DILATED, DILATED.layout("cpu"))(*DILATED.inputs("cpu"))
    assert asked == [None, False]


def test_forward_only_peer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_peers.flashinfer(monkeypatch)
    attend = PEERS["flashinfer"].prepare(DILATED, DILATED.layout("cpu"))
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in DILATED.inputs("cpu"))
    with pytest.raises(NotImplementedError, match="it has no backward"):
        attend(q, k, v)


def test_dense_fa4_ignores_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_peers.fa4(monkeypatch)
    q, k, v = CAUSAL.inputs("cpu")
    out = PEERS["fa4-dense"].prepare(CAUSAL, CAUSAL.layout("cpu"))(q, k, v)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-5, rtol=1e-4)
    assert PEERS["fa4-dense"].dense


# ---- lists


def test_lists_are_those_of_the_rows() -> None:
    mask = torch.tensor([[[1, 0, 0], [1, 0, 1]], [[0, 1, 1], [0, 0, 0]]], dtype=torch.bool)
    layout = BlockLayout.from_dense(mask, 16, q_len=32, kv_len=48)
    columns, counts = block_lists(layout, batch=2, heads=4)
    assert columns.dtype == counts.dtype == torch.int32
    assert counts.tolist() == [[[1, 2], [1, 2], [2, 0], [2, 0]]] * 2
    assert columns[1, 1].tolist() == [[0, 0], [0, 2]]
    assert columns[0, 2, 0].tolist() == [1, 2]
    assert torch.equal(block_mask(layout, 4), mask.repeat_interleave(2, 0))


# ---- what is refused

BF16 = Case(1024, 4, 128, 64, 0.2, pattern=RANDOM)
REFUSED = [
    ("bsa", BF16, "cpu", "needs a CUDA device"),
    ("bsa", replace(BF16, causal=True), "cuda", "no causal masks"),
    ("bsa", replace(BF16, block=32), "cuda", "needs blocks of 64 or 128, got 32"),
    ("bsa", replace(BF16, head_dim=80), "cuda", "needs head_dim 64, 96 or 128, got 80"),
    ("bsa", replace(BF16, dtype="float32"), "cuda", "needs float16 or bfloat16, got float32"),
    ("bsa", replace(BF16, seqlen=1000), "cuda", "needs whole blocks of 64, got 1000 tokens"),
    ("bsa", replace(WINDOW, causal=False, dtype="bfloat16"), "cuda", "no windows that are exact to the token"),
    ("bsa-auto-splits", replace(BF16, block=128), "cuda", "kv_splits='auto' is for blocks of 64, got 128"),
    ("vsa", replace(BF16, block=128), "cuda", "needs blocks of 64, got 128"),
    ("vsa", replace(BF16, kv_heads=2), "cuda", "needs as many kv heads as heads, 4, got 2"),
    ("vsa", replace(BF16, dtype="float16"), "cuda", "needs bfloat16, got float16"),
    ("flashinfer", replace(BF16, batch=2), "cuda", "needs batch 1, got 2"),
    ("flashinfer", replace(BF16, causal=True), "cuda", "no causal masks"),
    ("natten", BF16, "cuda", "needs a causal window that is exact to the token"),
    ("natten", replace(WINDOW, head_dim=64, kv_heads=2), "cuda", "needs as many kv heads as heads, 4, got 2"),
    ("fa4", Case(1024, 4, 128, 64, 0.2, causal=True, decode=True), "cuda", "no decoding"),
    ("fa4", replace(BF16, dtype="float32"), "cuda", "needs float16 or bfloat16, got float32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "case", "device", "why_not"), REFUSED)
def test_peer_says_why_it_cannot_serve_a_case(name: str, case: Case, device: str, why_not: str) -> None:
    found = PEERS[name].rejects(case, device)
    assert found is not None
    assert found.startswith(why_not)


@pytest.mark.parametrize(
    ("name", "case"), [("bsa", BF16), ("vsa", BF16), ("flashinfer", BF16), ("natten", replace(WINDOW, head_dim=64))]
)  # fmt: skip
def test_peer_that_is_not_installed_says_so(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the packages; without a GPU, too."""
    for module in ("cudnn", "fastvideo_kernel", "flashinfer", "natten"):
        monkeypatch.setitem(stub_peers.sys.modules, module, None)
    found = PEERS[name].rejects(case, "cuda")
    assert found is not None
    assert found.startswith("not installed (")
    assert "): pip install " in found
    assert PEERS[name].rejects(case, "cpu") == f"needs a CUDA device, and is {found}"


def test_peer_that_is_installed_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_peers.bsa(monkeypatch)
    stub_peers.vsa(monkeypatch)
    assert PEERS["bsa"].rejects(BF16, "cuda") is None
    assert PEERS["bsa"].rejects(BF16, "cpu") == "needs a CUDA device"
    assert PEERS["vsa"].rejects(BF16, "cuda") is None
    # without its compiled part it would take other kernels
    monkeypatch.setitem(stub_peers.sys.modules, "fastvideo_kernel._C.fastvideo_kernel_ops", None)
    assert str(PEERS["vsa"].rejects(BF16, "cuda")).startswith("not installed (")
    assert not_installed("json", "-") is None


def test_choices_in_words() -> None:
    assert [either(choices) for choices in ((64,), (64, 128), (1, 2, 3))] == ["64", "64 or 128", "1, 2 or 3"]
    dilated = replace(BF16, pattern="dilated_sparse", segment_lengths=(64, 128), dilation_rates=(1, 4))
    assert Limits().why_not(dilated, "cuda") == "no token dilation: its lists hold whole blocks"


# ---- wrong results


class Wrong:
    """Attention of other keys, or other gradients."""

    name, heads_first, dense = "wrong", False, False

    def __init__(self, is_wrong_forward: bool) -> None:
        self.is_wrong_forward = is_wrong_forward

    def rejects(self, case: Case, device: str) -> None:
        return None

    def prepare(self, case: Case, layout: BlockLayout) -> Any:
        attend = PEERS["ours"].prepare(case, layout)
        if self.is_wrong_forward:
            return lambda q, k, v: attend(q, k.flip(1), v)
        return lambda q, k, v: attend(q, k, v.detach()) + 0 * (k.sum() + v.sum())


@pytest.mark.parametrize(("is_wrong_forward", "what"), [(True, "its output"), (False, "its gradient")])
@pytest.mark.parametrize("how", [measure.measure, measure.measure_in_turn])
def test_peer_with_other_results_has_no_times(is_wrong_forward: bool, what: str, how: Any) -> None:
    peers: list[Any] = [PEERS["ours"], Wrong(is_wrong_forward)]
    layout = DILATED.layout("cpu")
    if how is measure.measure_in_turn:
        right, wrong = how(peers, DILATED, layout, 0.0, 1.0, True)
    else:
        expected, rows = None, []
        for peer in peers:
            row, expected = how(peer, DILATED, layout, 0.0, "cpu", expected, 1.0, True)
            rows.append(row)
        right, wrong = rows
    assert right.refused is None
    assert right.grad_error == 0.0
    assert wrong.refused is not None
    assert f"Disagreement: {what} differs from that of ours by " in wrong.refused
    assert wrong.backward_ms is None
    assert (wrong.forward_ms is None) == is_wrong_forward
