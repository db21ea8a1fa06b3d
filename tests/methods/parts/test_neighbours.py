from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from methods.parts.neighbours import ROWS, diffusion, nearest, principal, spread


def points(n: int = 40, d: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(0)), dim=1)


def test_nearest_are_those_of_a_sorted_matrix_whatever_the_rows_at_a_time() -> None:
    x = points(ROWS + 50, 3)
    value, index = nearest(x, 4)
    full = (x @ x.T).fill_diagonal_(-torch.inf)
    expected = full.sort(dim=1, descending=True)
    torch.testing.assert_close(value, expected.values[:, :4])
    assert (index != torch.arange(len(x))[:, None]).all()
    torch.testing.assert_close(full.gather(1, index), value)


def test_fewer_points_than_neighbours() -> None:
    assert nearest(points(4), 10)[1].shape == (4, 3)


def test_propagation_is_the_dense_solution() -> None:
    x, k, gamma, alpha = points(), 6, 3.0, 0.9
    n = len(x)
    value, index = nearest(x, k)
    a = np.zeros((n, n))
    for i in range(n):
        for j in sorted((j for j in range(n) if j != i), key=lambda j: -float(x[i] @ x[j]))[:k]:
            a[i, j] = max(float(x[i] @ x[j]), 0) ** gamma
    w = a + a.T
    degree = w.sum(1)
    s = w / np.sqrt(degree[:, None] * degree[None])
    y = np.zeros((n, 3))
    y[[0, 5, 9], [0, 1, 2]] = 1
    expected = (1 - alpha) * np.linalg.inv(np.eye(n) - alpha * s) @ y
    sparse = diffusion(value, index, gamma)
    np.testing.assert_allclose(sparse.to_dense(), s, atol=1e-5)
    found = spread(sparse, torch.from_numpy(y).float(), alpha, steps=200, tol=1e-7)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_principal_components_keep_what_varies() -> None:
    x = torch.zeros(50, 6)
    x[:, 2:4] = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    z = principal(x, 2)
    assert z.shape == (50, 2)
    torch.testing.assert_close(z @ z.T, x @ x.T, atol=1e-4, rtol=1e-4)
    assert principal(x, 6) is x
