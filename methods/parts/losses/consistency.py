"""Losses between predictions. Each returns one value per row, so that masks and weights can be applied; call ``.mean()``.

B rows, K classes.
"""

from __future__ import annotations

from torch import Tensor

from methods.parts.losses.precision import full_precision


@full_precision
def entropy(logits: Tensor) -> Tensor:
    """H(p) = -sum_k p_k log p_k, p = softmax(logits): [B, K] -> [B] (Grandvalet & Bengio 2004)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


@full_precision
def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k (log p_k - log q_k): logits [B, K] twice -> [B]. Gradients flow to both; detach the target."""
    log_p, log_q = p_logits.log_softmax(1), q_logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@full_precision
def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_k t_k log softmax(logits)_k: logits and target probabilities [B, K] -> [B]."""
    return -(target * logits.log_softmax(1)).sum(1)


@full_precision
def consistency_mse(p: Tensor, q: Tensor) -> Tensor:
    """Mean over classes of (p_k - q_k)^2, probabilities or logits [B, K] -> [B] (Laine & Aila 2016, arXiv:1610.02242)."""
    return (p - q).square().mean(1)
