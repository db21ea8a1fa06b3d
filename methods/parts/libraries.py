"""Encoders of torchvision and timm by name, with the weights that these libraries publish.

Weights are taken from the libraries' own caches, or downloaded into them; they are loaded as tensors, never as code.
"""

from __future__ import annotations

import re
from importlib import import_module
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from methods.encoder import Options, Shape, Statistics
from methods.parts.backbone import BackboneEncoder, Seeing
from search_spaces.domains import UserError, nearest

TORCHVISION, TIMM = "torchvision/", "timm/"

NO_FEATURES = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")
"""With several outputs in training, or a classifier that is no linear layer."""

_DENSE = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
"""Names in DenseNet's published files, which are older than its modules' names."""


def from_torchvision(name: str, shape: Shape, mean: Statistics, std: Statistics, options: Options) -> BackboneEncoder:
    """torchvision's network without its last linear layer, with fresh weights.

    Raises:
        UserError: there is none of that name, or it does not end in one linear layer.
    """
    weights, plain = published(name), name.removeprefix(TORCHVISION)
    if plain in NO_FEATURES:
        raise UserError(f"{name} has no single feature output; choose one that ends in one linear layer, such as resnet18")
    recipe: Any = weights.transforms()
    usual = int(recipe.crop_size[0])
    square = min(weights.meta.get("min_size", (1, 1))) >= usual
    net = models.get_model(plain, weights=None)
    last = [key for key, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    owner, _, attribute = last.rpartition(".")
    setattr(net.get_submodule(owner), attribute, nn.Identity())
    size: Any = options.get("size")
    seeing = Seeing(tuple(recipe.mean), tuple(recipe.std), usual, square)
    return BackboneEncoder(shape, mean, std, net, seeing, size, (last,))


def published(name: str) -> Any:
    """The entry of torchvision's enumeration of weights. Raises UserError where there is no classification network."""
    plain, known = name.removeprefix(TORCHVISION), [n for n in models.list_models(models) if "." not in n]
    if plain not in known:
        raise UserError(f"{name} is not an encoder{nearest(plain, known)}")
    return models.get_model_weights(plain)["DEFAULT"]


def torchvision_weights(name: str) -> dict[str, Tensor]:
    """The published state, by torchvision's names, without anything but tensors.

    Raises:
        UserError: it is neither in torch's cache nor can it be downloaded.
    """
    entry = published(name)
    try:
        state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} needs its weights in {torch.hub.get_dir()}/checkpoints or by a download, which failed ({reason}); copy"
            f" {entry.url} there, connect to the internet once, or use init none"
        ) from error
    return {_DENSE.sub(r"\1\2", key): value for key, value in state.items()}


def torchvision_source(name: str) -> str:
    """What the published weights were trained on, their source and licence, in a line."""
    entry = published(name)
    licence = entry.meta.get("license", "BSD-3-Clause")
    return f"ImageNet ({entry.name}), torchvision's {name.removeprefix(TORCHVISION)} ({licence})"


def from_timm(name: str, shape: Shape, mean: Statistics, std: Statistics, options: Options) -> BackboneEncoder:
    """timm's network without its classifier, with fresh weights.

    Raises:
        UserError: timm is not installed, or has none of that name.
    """
    net = _timm(name)
    config = _timms("timm.data", name).resolve_model_data_config(net)
    usual = int(config["input_size"][-1])
    square = bool(net.pretrained_cfg.get("fixed_input_size", False))
    size: Any = options.get("size")
    seeing = Seeing(tuple(config["mean"]), tuple(config["std"]), usual, square)
    classifier = net.pretrained_cfg.get("classifier") or ()
    left = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return BackboneEncoder(shape, mean, std, net, seeing, size, left)


def timm_weights(name: str) -> dict[str, Tensor]:
    """The published state, by timm's names.

    Raises:
        UserError: it is neither in the Hugging Face hub's cache nor can it be downloaded.
    """
    try:
        return dict(_timm(name, pretrained=True).state_dict())
    except UserError:
        raise
    except Exception as error:  # timm passes on what the hub's client and its transport raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} needs its weights in the Hugging Face hub's cache or a download, which failed ({reason}); connect to the"
            " internet once, give a local file as init, or use init none"
        ) from error


def timm_source(name: str) -> str:
    """Source and licence of the published weights, in a line."""
    entry = _timms("timm.models", name).get_pretrained_cfg(name.removeprefix(TIMM))
    place = getattr(entry, "hf_hub_id", None) or getattr(entry, "url", None) or "unknown place"
    return f"timm's {name.removeprefix(TIMM)}, {place} ({getattr(entry, 'license', None) or 'licence not stated'})"


def _timm(name: str, pretrained: bool = False) -> Any:
    timm = _timms("timm", name)
    plain = name.removeprefix(TIMM)
    if not timm.is_model(plain):
        raise UserError(f"{name} is not an encoder{nearest(plain, timm.list_models())}")
    return timm.create_model(plain, pretrained=pretrained, num_classes=0)


def _timms(module: str, name: str) -> Any:
    """A module of timm's. Raises UserError where it is not installed; ``name`` is the encoder that needs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{name} needs timm, which is not installed; pip install 'labelwise[timm]'") from error
