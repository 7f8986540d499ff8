"""Row normalisation: the value of F.normalize, a gradient that a zero row cannot blow up."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wssl.core.rows import normalize_rows, widen


@given(st.integers(0, 2**16), st.integers(1, 9), st.integers(1, 9), st.floats(-6, 6))
def test_value_and_gradient_are_those_of_f_normalize(seed, n, m, log_scale):
    a = (
        torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10**log_scale
    ).requires_grad_()
    b = a.detach().clone().requires_grad_()
    weight = torch.linspace(-1, 1, n * m, dtype=torch.float64).reshape(n, m)
    (normalize_rows(a) * weight).sum().backward()
    (F.normalize(b, dim=1) * weight).sum().backward()
    torch.testing.assert_close(normalize_rows(a.detach()), F.normalize(b.detach(), dim=1))
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9 * 10**-log_scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_and_tiny_rows_get_no_gradient(dtype):
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-30, 0.0]]).to(dtype).requires_grad_()
    out = normalize_rows(z)
    assert out.dtype == widen(z).dtype
    out.sum().backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().max() < 1
    assert (z.grad[0] == 0).all() and (z.grad[2] == 0).all() and (z.grad[1] != 0).any()


def test_half_precision_rows_do_not_overflow():
    z = torch.full((1, 4), 6e4, dtype=torch.float16)
    torch.testing.assert_close(normalize_rows(z), torch.full((1, 4), 0.5))
