"""New heads for a task, fitted to the embeddings of its support set; all tasks at once, none sees another.

Shapes: T tasks, S support images, Q queries, N ways, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from methods.parts.distances import class_means

MOMENTUM = 0.9


def _standardised(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, centred on the support set and scaled to rows of mean square length 1, with a constant 1 appended."""
    support, query = support.float(), query.float()
    centre = support.mean(dim=1, keepdim=True)
    support, query = support - centre, query - centre
    scale = support.square().sum(dim=2).mean(dim=1).clamp_min(1e-12).rsqrt()[:, None, None]
    return _with_one(support * scale), _with_one(query * scale)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=2)


def linear_logits(support: Tensor, label: Tensor, query: Tensor, ways: int, steps: int, lr: float, decay: float) -> Tensor:
    """Softmax regression by full-batch gradient descent with momentum, from zero, on standardised embeddings.

    Args:
        support: [T, S, D]. label: int64 [T, S]. query: [T, Q, D].
        ways: N.
        steps: gradient steps.
        lr: their learning rate.
        decay: weight of the squared length of the weights.
    Returns:
        float32 [T, Q, N].
    """
    with torch.no_grad(), torch.autocast(support.device.type, enabled=False):
        x, asked = _standardised(support, query)
        target = one_hot(label, ways).float()  # [T, S, N]
        weight = x.new_zeros(len(x), x.shape[2], ways)  # [T, D+1, N]
        velocity = torch.zeros_like(weight)
        for _ in range(steps):
            error = (x @ weight).softmax(dim=2) - target
            gradient = x.transpose(1, 2) @ error / x.shape[1] + decay * weight
            velocity = MOMENTUM * velocity + gradient
            weight = weight - lr * velocity
        return asked @ weight


def ridge_logits(support: Tensor, label: Tensor, query: Tensor, ways: int, decay: float) -> Tensor:
    """Least squares on one-hot targets in closed form, on standardised embeddings; otherwise as ``linear_logits``."""
    with torch.no_grad(), torch.autocast(support.device.type, enabled=False):
        x, asked = _standardised(support, query)
        target = one_hot(label, ways).float()
        # With S images and D > S features the dual system, S x S, is the small one.
        kernel = x @ x.transpose(1, 2)
        kernel = kernel + decay * x.shape[1] * torch.eye(x.shape[1], device=x.device)
        return asked @ (x.transpose(1, 2) @ torch.linalg.solve(kernel, target))


def cosine_logits(
    support: Tensor, label: Tensor, query: Tensor, ways: int, steps: int, lr: float, temperature: float
) -> Tensor:
    """Cosine classifier: rows start at the class means of the unit embeddings (imprinted) and take gradient steps.

    Args and result as ``linear_logits``; ``temperature`` divides the cosines.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(support.device.type, enabled=False):
        x, asked = (normalize(z.detach().float().clone(), dim=2) for z in (support, query))
        label = label.clone()  # Tensors made in inference mode may not be saved for the backward pass.
        weight = normalize(class_means(x, label, ways), dim=2)  # [T, N, D]
        for _ in range(steps):
            weight = weight.detach().requires_grad_()
            logits = x @ normalize(weight, dim=2).transpose(1, 2) / temperature  # [T, S, N]
            # The sum over tasks of each task's mean: every task has its own gradient.
            loss = cross_entropy(logits.flatten(0, 1), label.flatten()) * len(x)
            (gradient,) = torch.autograd.grad(loss, weight)
            weight = weight - lr * gradient
        return (asked @ normalize(weight.detach(), dim=2).transpose(1, 2)) / temperature
