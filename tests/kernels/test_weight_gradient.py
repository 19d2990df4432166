"""dW of the CPU backends: as exact over many chunks as in one GEMM, and added where it is asked to.

Shapes: `N tokens . D hidden . V vocab`.
"""

import pytest
import torch

from polaris_kernels.backends import get_backend
from polaris_kernels.backends.base import Wanted
from polaris_kernels.objective import TokenGradients
from polaris_kernels.problem import HeadProblem, make_problem

from .cases import assert_close

pytestmark = pytest.mark.usefixtures("cpu_backend")
N, D, V = 512, 32, 1_031
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def problem_in(dtype, num_chunks=1) -> HeadProblem:
    g = torch.Generator().manual_seed(7)
    narrow = torch.float32 if dtype == torch.float64 else dtype
    hidden, weight = (torch.randn(n, D, generator=g).to(narrow).to(dtype) for n in (N, V))
    problem = make_problem(
        hidden,
        0.3 * weight,
        torch.randint(V, (N,), generator=g),
        bias=None,
        temperature=1.0,
        softcap=None,
        logit_scale=1.0,
        logits_dtype="fp32",
        chunk_bytes=V * 4 * (N // num_chunks),
        caller="test",
    )
    assert dtype == torch.float64 or num_chunks == backend().num_chunks(problem)
    return problem


def backend():
    return get_backend(torch.device("cpu"))


def weight_gradient(problem, into=None):
    _, made = backend().gradients(
        problem,
        lambda _, statistics: TokenGradients(torch.ones_like(statistics.logp)),
        Wanted(hidden=False, weight=True, bias=False),
        entropy_gradient=False,
        weight_into=into,
    )
    return made.weight


def exact_gradient(problem):
    hidden, weight = problem.hidden.double(), problem.weight.double()
    dz = -(hidden @ weight.t()).softmax(1)
    dz[torch.arange(N), problem.targets] += 1
    return dz, dz.t() @ hidden


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("num_chunks", [1, 2, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_error_does_not_grow_with_the_chunks(dtype, num_chunks):
    problem = problem_in(dtype, num_chunks)
    dz, exact = exact_gradient(problem)
    one_gemm = torch.mm(dz.to(dtype).t(), problem.hidden)
    found = weight_gradient(problem)
    assert rms(found.to(dtype) - exact) <= 1.02 * rms(one_gemm - exact) + 1e-6
    # what is summed in fp32 shows a rounding per chunk that the final one would hide
    total = torch.zeros(V, D)
    weight_gradient(problem, total)
    single = torch.zeros(V, D)
    weight_gradient(problem_in(dtype), single)
    assert rms(total - exact) <= 1.02 * rms(single - exact) + 1e-7


@pytest.mark.parametrize("num_chunks", [1, 8])
@pytest.mark.parametrize("into", ["wide", "narrow"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_it_is_added_to_what_is_there(dtype, into, num_chunks):
    problem = problem_in(dtype, num_chunks)
    kind = problem.acc_dtype if into == "wide" else dtype
    start = torch.randn(V, D, generator=torch.Generator().manual_seed(3)).to(kind)
    total = start.clone()
    assert weight_gradient(problem, total) is None
    expected = start.double() + exact_gradient(problem)[1]
    # one rounding of the sum at most; a second one would show as twice the error
    kept = expected.to(kind).double()
    allowed = rms(kept - expected) + 2 * rms(weight_gradient(problem).double() - kept + start)
    assert rms(total - expected) <= 1.05 * allowed + 1e-7


def test_the_gemms_add_straight_into_it(cpu_backend, monkeypatch):
    problem = problem_in(torch.float32)
    total = torch.zeros(V, D)
    shapes = []
    for name in ("empty", "zeros"):
        made = getattr(torch, name)
        monkeypatch.setattr(
            torch,
            name,
            lambda *size, _made=made, **kind: shapes.append(size) or _made(*size, **kind),
        )
    weight_gradient(problem, total)
    assert_close(total.double(), exact_gradient(problem)[1], 1e-5)
    assert not [size for size in shapes if size in ((V, D), ((V, D),))]


def test_no_tokens_leave_it_as_it_is():
    problem = problem_in(torch.bfloat16)
    empty = make_problem(
        problem.hidden[:0], problem.weight, problem.targets[:0], bias=None, temperature=1.0,
        softcap=None, logit_scale=1.0, logits_dtype="fp32", chunk_bytes=None, caller="test",
    )  # fmt: skip
    for kind in (torch.float32, torch.bfloat16):
        total = torch.ones(V, D, dtype=kind)
        assert weight_gradient(empty, total) is None
        assert (total == 1).all()
