"""The head on the CUDA kernels, their source run on the CPU between the backend's GEMMs: gradients
of every loss against the reference, and which of them take one read of the logits.

Shapes: `N tokens . D hidden . V vocab`.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
from polaris_kernels import (
    LossSpec,
    active_backend,
    backends,
    linear_grpo_loss,
    linear_logps,
    selective_logps,
)
from polaris_kernels.backends import cuda_library, cuda_probe, get_backend
from polaris_kernels.backends.native_library import LibraryError
from polaris_kernels.backends.row_kernels import CudaRows
from polaris_kernels.backends.triton_chunked import TritonBackend, _is_capturing
from polaris_kernels.foreseen import rule_of
from polaris_kernels.objective import SpecObjective
from polaris_kernels.testing import no_worse_than_torch

from .cases import as_float32, grads, make_head, make_rows, reference_loss
from .cuda_emulator import Emulator, compile_emulator

N, D, V = 24, 6, 203
# several chunks: a padded row is 208 fp32
CHUNKED = 208 * 4 * 10


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture
def emulator(library, monkeypatch):
    """The library behind `backend="triton"` in a test."""
    made = Emulator(library)
    backend = TritonBackend(kernels=CudaRows(made))
    monkeypatch.setitem(backends._instances, "triton", backend)
    return made


ONE_READ = [
    LossSpec(),
    LossSpec(loss_type="grpo", epsilon=0.1, epsilon_high=0.2, delta=1.4, entropy_coef=0.02),
    *(
        LossSpec(loss_type="dr_grpo", max_completion_length=9, beta=0.1, kl_estimator=kl)
        for kl in ("k1", "abs", "k2", "k3", "k3+")
    ),
    LossSpec(loss_type="bnpo", is_correction="token_truncate", beta=0.05),
    # whole rows come first, then a known gradient
    LossSpec(loss_type="gspo"),
    LossSpec(loss_type="gmpo", entropy_coef=0.1),
]
TWO_READS = [
    LossSpec(loss_type="cispo", epsilon_high=2.0),
    LossSpec(loss_type="sapo"),
    LossSpec(beta=0.1, kl_importance_correction=True),
]


def _id(spec: LossSpec) -> str:
    return f"{spec.loss_type}-{spec.kl_estimator}-{spec.beta}-{spec.is_correction}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", [*ONE_READ, *TWO_READS], ids=_id)
def test_gradients_of_the_loss(emulator, spec, dtype):
    exact_head = make_head(N, D, V, scale=0.5).to(dtype).to(torch.float64)
    rows = as_float32(make_rows(exact_head))
    if spec.loss_type == "grpo":
        rows = replace(rows, rollout_logps=None)
    head, plain_head = exact_head.to(dtype), exact_head.to(dtype)
    found = linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=rows, spec=spec, backend="triton",
        chunk_bytes=CHUNKED, grad_scale=torch.tensor(0.5),
    )  # fmt: skip
    exact = reference_loss(exact_head, rows, spec) * 0.5
    plain = reference_loss(plain_head, rows, spec) * 0.5
    sets = (grads(found.loss, head), grads(plain, plain_head), grads(exact, exact_head))
    for a, b, c in zip(*sets, strict=True):
        no_worse_than_torch(a, b, c)
    # gathered rows of several chunks
    if spec in ONE_READ:
        assert emulator.calls.count("row_pass") >= 2 and "gradient" not in emulator.calls
    else:
        assert "row_pass" not in emulator.calls
        assert emulator.calls.count("gradient") == emulator.calls.count("statistics") >= 2


@pytest.mark.parametrize("spec", ONE_READ[:8], ids=_id)
@pytest.mark.parametrize("moved", [True, False], ids=["old_logps", "ratio_1"])
def test_the_rule_is_what_the_objective_says(spec, moved, monkeypatch):
    from polaris_kernels import loss_call

    seen = []
    made = loss_call.rule_of

    def spy(objective, tokens, scale):
        seen.append((objective, tokens, made(objective, tokens, scale)))
        return None

    monkeypatch.setattr(loss_call, "rule_of", spy)
    kernels = CudaRows(library=None)
    # the rule is asked for, and Triton's kernels do the work
    monkeypatch.setattr(kernels, "takes_rule", lambda logits, out: True)
    monkeypatch.setattr(kernels, "statistics", kernels.triton.statistics)
    monkeypatch.setattr(kernels, "gradients", kernels.triton.gradients)
    backend = TritonBackend(kernels=kernels)
    monkeypatch.setitem(backends._instances, "triton", backend)
    head = make_head(N, D, V, dtype=torch.float32)
    rows = as_float32(make_rows(head))
    if not moved:
        rows = replace(rows, old_logps=None)
    out = linear_grpo_loss(
        head.hidden, head.weight, head.targets, rows=rows, spec=spec, backend="triton"
    )
    ((objective, tokens, rule),) = seen
    assert isinstance(objective, SpecObjective)
    # a correction against this forward's own log-probs is no constant
    assert (rule is None) == (not moved and spec.is_correction != "none")
    if rule is None:
        return
    kept = rows.completion_mask.nonzero().squeeze(1)
    logps = out.logps[kept]
    known = objective.gradients(tokens, logps, out.entropy[kept])
    c = rule.clipped
    r = torch.ones_like(logps) if c.old_logps is None else (logps - c.old_logps).exp()
    active = (r * c.advantages <= r.clamp(c.low, c.high) * c.advantages) & (r <= c.cap)
    expected = -c.weight * r * c.advantages * active
    if c.kl_slope != "none":
        d = logps - c.ref_logps
        slope = {"k1": d * 0 + 1, "abs": d.sign(), "k2": d, "k3": 1 - (-d).exp()}[c.kl_slope]
        expected = expected + c.kl_weight * slope
    torch.testing.assert_close(expected, known.logp, rtol=1e-5, atol=1e-8)
    if spec.entropy_coef:
        torch.testing.assert_close(rule.given.entropy, known.entropy)
    else:
        assert rule.given.entropy is None and known.entropy is None
    torch.testing.assert_close(rule_of(objective, tokens, 3.0).clipped.weight, c.weight * 3.0)


def test_a_frozen_head_reads_once(emulator):
    head = make_head(N, D, V, dtype=torch.float32)
    weight = head.weight.detach()
    out = linear_logps(
        head.hidden, weight, head.targets, backend="triton", chunk_bytes=CHUNKED, temperature=0.7
    )
    (found,) = torch.autograd.grad(out.logps.sum(), head.hidden)
    exact = make_head(N, D, V, temperature=0.7).to(torch.float64)
    plain = exact.plain().logps.sum()
    torch.testing.assert_close(found.double(), grads(plain, exact)[0], rtol=1e-4, atol=1e-5)
    assert set(emulator.calls) == {"row_pass"}


def test_a_trainable_head_reads_once_in_backward(emulator):
    head = make_head(N, D, V, dtype=torch.float32)
    out = linear_logps(
        head.hidden, head.weight, head.targets, backend="triton", return_entropy=True
    )
    assert emulator.calls == ["statistics"]
    found = grads((out.logps + 0.1 * out.entropy).sum(), head)
    assert emulator.calls == ["statistics", "row_pass"]
    exact = head.to(torch.float64)
    plain = exact.plain()
    expected = grads((plain.logps + 0.1 * plain.entropy).sum(), exact)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [208, 203], ids=["aligned", "unaligned"])
def test_logits_that_exist(emulator, width):
    logits = torch.randn(5, width, requires_grad=True)
    targets = torch.arange(5)
    out = selective_logps(logits, targets, backend="triton")
    (found,) = torch.autograd.grad(out.logps.sum(), logits)
    (exact,) = torch.autograd.grad(
        logits.double().log_softmax(1).gather(1, targets[:, None]).sum(), logits
    )
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    # rows of 203 fp32 do not start at multiples of 16 bytes: Triton's kernels take them
    assert emulator.calls == (["statistics", "gradient"] if width == 208 else [])


def test_the_probe_passes_good_kernels_and_stops_bad_ones(library):
    emulator = Emulator(library)
    device = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        cuda_probe.try_rows(CudaRows(emulator), device, 1_003, dtype)

    class Wrong(Emulator):
        def row_pass(self, logits, state, rule, out, cluster):
            super().row_pass(logits, state, rule, out, 1)
            rule.g_logp = None
            super().row_pass(logits, state, rule, out, 1)

    with pytest.raises(LibraryError, match=r"one read, 1003 columns .* off by .* Triton's are"):
        cuda_probe.try_rows(CudaRows(Wrong(library)), device, 1_003, torch.float32)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_first_call_may_come_without_autograd(library, mode):
    with mode():
        cuda_probe.try_rows(CudaRows(Emulator(library)), torch.device("cpu"), 1_003, torch.bfloat16)


def test_the_probe_saves_nothing_in_a_region_that_is_checkpointed(library):
    def region(x):
        kernels = CudaRows(Emulator(library))
        cuda_probe.try_rows(kernels, torch.device("cpu"), 1_003, torch.bfloat16)
        return x * x

    saved = []
    x = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = region(x)
    assert len(saved) == 2 and all(t.shape == (3,) for t in saved)
    y.sum().backward()
    assert (x.grad == 2).all()


def test_the_probe_makes_its_rows_on_the_host_whatever_the_defaults(library):
    rows = cuda_probe._rows(torch.device("cpu"), 1_003, torch.float32)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.bfloat16)
    try:
        again = cuda_probe._rows(torch.device("cpu"), 1_003, torch.float32)
        cuda_probe.try_rows(CudaRows(Emulator(library)), torch.device("cpu"), 1_003, torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(rows[0], again[0]) and torch.equal(rows[1], again[1])


def test_without_a_device_triton_takes_over_by_name(monkeypatch, caplog):
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    monkeypatch.delenv(backends.ENVIRONMENT_KEY, raising=False)
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.setitem(backends._FACTORIES, "cuda", backends._cuda)
    with caplog.at_level("WARNING", logger="polaris_kernels"):
        assert active_backend("cuda") == "triton"
    assert "head on cuda: triton backend (polaris_kernels: torch finds no CUDA" in caplog.text


def test_each_device_is_probed_and_chosen_for_by_itself(library, monkeypatch, caplog):
    current, tried, has_ended = [0], [], [False]

    @contextmanager
    def switched(device):
        before, current[0] = current[0], device.index
        try:
            yield
        finally:
            current[0] = before

    monkeypatch.delenv(backends.ENVIRONMENT_KEY, raising=False)
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.setattr(backends, "_instances", {})
    monkeypatch.setitem(backends._FACTORIES, "cuda", backends._cuda)
    monkeypatch.setattr(cuda_probe, "CudaLibrary", lambda: Emulator(library))
    monkeypatch.setattr(
        cuda_probe, "try_rows", lambda kernels, device, *_: tried.append((device.index, *current))
    )
    capabilities = [(9, 0), (7, 5), (8, 0)]
    for name, fake in {
        "is_available": lambda: True,
        "current_device": lambda: current[0],
        "device": switched,
        "get_device_capability": lambda device=None: capabilities[device.index],
        # of the current device alone, as torch's
        "is_current_stream_capturing": lambda: current[0] == 2 and not has_ended[0],
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with caplog.at_level("WARNING", logger="polaris_kernels"):
        assert active_backend("cuda:1") == "triton"
        assert active_backend("cuda") == active_backend("cuda:0") == "cuda"
        assert active_backend("cuda:2") == "triton"
    assert "cuda:1 has 7.5" in caplog.text and "graph capture" in caplog.text
    assert set(tried) == {(0, 0)}
    current[0] = 1
    assert active_backend("cuda") == "triton"
    assert get_backend(torch.device("cuda:0"), "cuda") is get_backend(torch.device("cuda:0"))
    with pytest.raises(LibraryError, match="needs compute capability"):
        get_backend(torch.device("cuda:1"), "cuda")
    assert [_is_capturing(torch.device("cuda", i)) for i in range(3)] == [False, False, True]
    # a first call inside of a capture decides nothing for the calls after it
    has_ended[0] = True
    assert active_backend("cuda:2") == "cuda"


def test_it_is_refused_for_cpu_tensors_and_named_when_missing(monkeypatch):
    monkeypatch.setitem(backends._FACTORIES, "cuda", backends._cuda)
    with pytest.raises(ValueError, match="'cuda', which runs on CUDA devices only"):
        get_backend(torch.device("cpu"), "cuda")
    monkeypatch.delitem(backends._FACTORIES, "cuda")
    with pytest.raises(ValueError, match=r"not available here; .* where nvcc is"):
        get_backend(torch.device("cuda"), "cuda")


def test_fp16_and_float64_rows_are_left_to_triton():
    for dtype in (torch.float16, torch.float64):
        assert not cuda_library.takes(torch.zeros(2, 16, dtype=dtype))
    assert cuda_library.takes(torch.zeros(2, 16), torch.zeros(2, 16, dtype=torch.bfloat16))
    assert not cuda_library.takes(torch.zeros(2, 32)[:, 1:17])
