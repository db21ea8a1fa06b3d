"""Multinomial logistic regression by L-BFGS.

n rows, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

HISTORY = 10
"""Curvature pairs that L-BFGS keeps."""

PRECISE = 2**20
"""Numbers in the rows up to which the search computes in float64; larger ones take float32, at half the cost."""


def fit_logistic(
    x: Tensor,
    target: Tensor,
    c: float,
    *,
    intercept: bool = True,
    weight: Tensor | None = None,
    steps: int = 200,
    tol: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Minimises 1/2 |W|^2 + c sum_i v_i H(t_i, softmax(W x_i + b)), v_i a row's weight and H the cross-entropy.

    With fewer rows than features the rows' own span holds the solution (representer theorem), so that the search goes on
    in n instead of D dimensions: exactly the same, and cheaper.

    Args:
        x: float [n, D].
        target: float [n, K], rows of probabilities.
        c: inverse penalty.
        intercept: whether there is b, which is not penalised; its mean over the classes is 0.
        weight: [n], or None for 1 each.
        steps: of L-BFGS at the most.
        tol: largest entry of the gradient of the mean loss at which it ends.
    Returns:
        float [K, D] and float [K]; float64 for up to ``PRECISE`` numbers in ``x``.
    """
    dtype = torch.float64 if x.numel() <= PRECISE else torch.float32
    x, target = x.to(dtype), target.to(dtype)
    v = torch.ones(len(x), dtype=x.dtype, device=x.device) if weight is None else weight.to(dtype)
    basis: Tensor | None = None
    if len(x) < x.shape[1]:
        basis, triangle = torch.linalg.qr(x.T)  # D n, n n
        x = triangle.T
    theta = torch.zeros(target.shape[1], x.shape[1] + intercept, dtype=x.dtype, device=x.device)
    if intercept:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    penalised = torch.ones_like(theta[0])
    if intercept:
        penalised[-1] = 0
    scale = 1 / max(float(c * v.sum()), 1e-12)

    def objective(w: Tensor) -> tuple[Tensor, Tensor]:
        """The loss over c times the rows' whole weight, and its gradient."""
        logits = x @ w.T  # n K
        log_p = F.log_softmax(logits, dim=1)
        held = w * penalised
        loss = -(target * log_p).sum(1) @ v
        gradient = ((log_p.exp() * target.sum(1, keepdim=True) - target) * v[:, None]).T @ x
        return (0.5 * (held * held).sum() + c * loss) * scale, (held + c * gradient) * scale

    theta = _lbfgs(objective, theta, steps, tol)
    w, b = (theta[:, :-1], theta[:, -1]) if intercept else (theta, torch.zeros_like(theta[:, 0]))
    return (w if basis is None else w @ basis.T), b - b.mean()


def _lbfgs(objective: Callable[[Tensor], tuple[Tensor, Tensor]], theta: Tensor, steps: int, tol: float) -> Tensor:
    """L-BFGS (Liu & Nocedal 1989) with halved steps: the losses here are convex and smooth, and the first step is scaled."""
    loss, gradient = objective(theta)
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for _ in range(steps):
        if float(gradient.abs().max()) <= tol:
            break
        direction = _two_loops(gradient, pairs)
        slope = float((direction * gradient).sum())
        size = 1.0 if pairs else min(1.0, 1 / float(gradient.abs().sum()))
        while True:
            moved = theta + size * direction
            new_loss, new_gradient = objective(moved)
            if float(new_loss) <= float(loss) + 1e-4 * size * slope or size < 1e-10:
                break
            size /= 2
        step, change = moved - theta, new_gradient - gradient
        curvature = float((step * change).sum())
        if curvature > 1e-16:
            pairs = [*pairs[-(HISTORY - 1) :], (step, change, 1 / curvature)]
        theta, loss, gradient = moved, new_loss, new_gradient
        if size < 1e-10:
            break
    return theta


def _two_loops(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """The direction -H g, H the inverse Hessian that the pairs tell."""
    q, alphas = gradient.clone(), []
    for step, change, rho in reversed(pairs):
        alpha = rho * float((step * q).sum())
        q -= alpha * change
        alphas.append(alpha)
    if pairs:
        step, change, rho = pairs[-1]
        q /= rho * float((change * change).sum())
    for (step, change, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - rho * float((change * q).sum())) * step
    return -q
