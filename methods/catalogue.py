"""The catalogue: every method, listed by hand. A method that is not listed here does not exist."""

from __future__ import annotations

from methods.adapt import (
    bitfit,
    continued_pretraining,
    distill,
    fine_tune,
    frozen_co_training,
    frozen_entropy_minimization,
    frozen_mixmatch,
    frozen_pseudo_label,
    knn_classifier,
    label_propagation,
    linear_probe,
    lora,
    partial_freeze,
    prototype_classifier,
    staged_unfreezing,
)
from methods.baselines import cutout, mixup, supervised
from methods.contracts import Method
from methods.fewshot import (
    anil,
    cosine_classifier,
    finetune_baseline,
    maml,
    matching,
    meta_sgd,
    metric_learning,
    prototypical,
    reptile,
    selfsup_fewshot,
    siamese,
)
from methods.selfsup import (
    autoencoder,
    bag_of_words,
    barlow_twins,
    byol,
    clip,
    cmc,
    colorization,
    cpc,
    deep_infomax,
    denoising_autoencoder,
    dino,
    exemplar,
    inpainting,
    instance_discrimination,
    jigsaw,
    mae,
    moco,
    pirl,
    relative_patch,
    rotation,
    rotation_gan,
    simclr,
    simclr_v2,
    split_brain,
    vicreg,
)
from methods.semisup import (
    co_training,
    entropy_minimization,
    fixmatch,
    ladder,
    mean_teacher,
    mixmatch,
    noisy_student,
    pi_model,
    pseudo_label,
    remixmatch,
    s4l,
    temporal_ensembling,
    uda,
    vat,
)
from search_spaces.domains import UserError, nearest

_MODULES = (
    # Baselines and regularisers
    supervised, mixup, cutout,
    # Pretrained and adapted
    linear_probe, knn_classifier, prototype_classifier, label_propagation, frozen_pseudo_label, frozen_entropy_minimization,
    frozen_mixmatch, frozen_co_training, fine_tune, staged_unfreezing, lora, bitfit, partial_freeze, continued_pretraining,
    distill,
    # Self-supervised
    autoencoder, denoising_autoencoder, inpainting, colorization, split_brain, rotation, relative_patch, jigsaw, exemplar,
    instance_discrimination, cpc, deep_infomax, cmc, pirl, simclr, simclr_v2, moco, byol, dino, barlow_twins, vicreg, mae,
    clip, bag_of_words, rotation_gan,
    # Semi-supervised
    pseudo_label, entropy_minimization, vat, ladder, pi_model, temporal_ensembling, mean_teacher, mixmatch, remixmatch, uda,
    fixmatch, co_training, noisy_student, s4l,
    # Few-shot, meta-learning and metric learning
    finetune_baseline, cosine_classifier, siamese, matching, prototypical, maml, meta_sgd, anil, reptile, selfsup_fewshot,
    metric_learning,
)  # fmt: skip

CATALOGUE: dict[str, Method] = {module.METHOD.name: module.METHOD for module in _MODULES}


def method(name: str) -> Method:
    """The catalogue's entry. Raises UserError with the nearest name where there is none."""
    if name not in CATALOGUE:
        raise UserError(f"{name} is not a method of the catalogue{nearest(name, CATALOGUE)}; see 'labelwise methods'")
    return CATALOGUE[name]
