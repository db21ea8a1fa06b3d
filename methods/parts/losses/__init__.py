"""Losses, in float32 and differentiable; formula, shapes and source in each. Contrastive ones work on the global batch."""

from methods.parts.losses.consistency import consistency_mse, entropy, kl, soft_cross_entropy
from methods.parts.losses.contrastive import info_nce, nce, nce_log_constant, nonparametric_softmax, nt_xent
from methods.parts.losses.metric import FORMS, MINING, n_pair, next_of_class, pairwise_contrastive, triplet
from methods.parts.losses.mixing import mixup
from methods.parts.losses.redundancy import barlow, vicreg, vicreg_terms
from methods.parts.sharpen import sharpen

__all__ = [
    "FORMS",
    "MINING",
    "barlow",
    "consistency_mse",
    "entropy",
    "info_nce",
    "kl",
    "mixup",
    "n_pair",
    "nce",
    "nce_log_constant",
    "next_of_class",
    "nonparametric_softmax",
    "nt_xent",
    "pairwise_contrastive",
    "sharpen",
    "soft_cross_entropy",
    "triplet",
    "vicreg",
    "vicreg_terms",
]
