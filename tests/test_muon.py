"""Muon against its definition by singular values, and against torch's, which rounds to bfloat16."""

import pytest
import torch
from bounds import EXACT

from rethinker.tiny.muon import ITERATIONS, NEWTON_SCHULZ, Muon, orthogonalized


def by_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    return u * values @ v


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (1, 4)])
def test_orthogonalized_is_its_polynomial_of_the_singular_values(shape) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = orthogonalized(matrix)
    torch.testing.assert_close(result, by_singular_values(matrix), rtol=0, atol=EXACT)
    torch.testing.assert_close(orthogonalized(1e-4 * matrix), result, rtol=0, atol=EXACT)  # of any length


def test_singular_values_are_near_one() -> None:
    matrix = torch.randn(40, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.min() > 0.6 and values.max() < 1.3


def test_no_gradient_no_update_and_zero_stays_zero() -> None:
    weights = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    weights[1].grad = torch.zeros(2, 3)
    Muon(weights, lr=0.1, weight_decay=0.0).step()
    assert all(torch.equal(weight, torch.ones(2, 3)) for weight in weights)


def test_steps_are_those_of_torch_up_to_its_rounding() -> None:
    """Three steps of a 24x16 matrix: bfloat16 rounds by up to 2^-9, which five iterations make some two percent."""
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(24, 16, generator=generator)
    gradients = [torch.randn(24, 16, generator=generator) for _ in range(3)]
    moves = []
    for kind, options in ((Muon, {}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})):
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.03, weight_decay=0.01, momentum=0.95, **options)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        moves.append(weight.detach() - start)
    ours, theirs = moves
    assert (ours - theirs).norm() < 0.05 * theirs.norm()
    assert ours.square().mean().sqrt() == pytest.approx(3 * 0.2 * 0.03, rel=0.5)
