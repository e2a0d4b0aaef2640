"""Gradients that half precision alone would round to nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pull_back import pull_back


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e12])
def test_a_gradient_of_any_size_comes_through_half_precision(size: float) -> None:
    x_s = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x0_hat = (x_s.half() * 0.5).float()
    gradient = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * size
    gradient[1] = 0
    found = pull_back(x0_hat, x_s, gradient)
    assert torch.allclose(found, gradient / 2, rtol=1e-3, atol=1e-4 * size)
    assert not found[1].any()


@given(power=st.integers(-60, 60))
@settings(max_examples=20, deadline=None)
def test_pulling_back_in_float32_changes_no_bit(power: int) -> None:
    x_s = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x0_hat = x_s.sin() * 3
    gradient = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 2.0**power
    (expected,) = torch.autograd.grad(x0_hat, x_s, gradient, retain_graph=True)
    assert torch.equal(pull_back(x0_hat, x_s, gradient), expected)
