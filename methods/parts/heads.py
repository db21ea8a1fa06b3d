"""Heads: what stands on an encoder. Projection heads, classifiers, prototypes; and the file a predictor is exported to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.parts.encoders import Encoder, encoder_from, encoder_record
from methods.parts.weights import WeightsFile, cpu_state, load_state, name_of, read_weights, write_weights
from search_spaces.domains import UserError

NEVER = -1e4
"""Logit of a class that the fit has no label of; finite, so that losses and temperatures stay finite too."""


def mlp(inputs: int, hidden: int, outputs: int, depth: int, norm: bool = False, last_norm: bool = False) -> nn.Sequential:
    """``depth`` linear layers with ReLU between them: [B, inputs] -> [B, outputs].

    Args:
        inputs, hidden, outputs: widths.
        depth: 0 is the identity (the output is then ``inputs`` wide), 1 a linear layer, 2 has one hidden layer, 3 two.
        norm: BatchNorm after every hidden layer.
        last_norm: BatchNorm without scale and shift after the last layer.
    """
    layers: list[nn.Module] = []
    for number in range(depth):
        last = number == depth - 1
        normed = last_norm if last else norm
        width = outputs if last else hidden
        layers.append(nn.Linear(inputs if number == 0 else hidden, width, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(width, affine=not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def projection_head(inputs: int, hidden: int, outputs: int, depth: int = 2, batchnorm: bool = True) -> nn.Sequential:
    """SimCLR's projection head (Chen et al. 2020, arXiv:2002.05709): ``mlp`` with BatchNorm in the hidden layers."""
    return mlp(inputs, hidden, outputs, depth, norm=batchnorm)


class CosineHead(nn.Module):
    """Logits cos(x, w_k) / temperature (Chen et al. 2019, "A closer look at few-shot classification", arXiv:1904.04232).

    Also a layer of weight-normalised prototypes (DINO, SwAV): with temperature 1 the outputs are the cosines.
    """

    def __init__(self, inputs: int, classes: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight = nn.Parameter(torch.randn(classes, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> float32 [B, classes]."""
        with torch.autocast(x.device.type, enabled=False):
            x, weight = x.to(self.weight.dtype), self.weight
            return F.linear(F.normalize(x, dim=1), F.normalize(weight, dim=1)) / self.temperature


class UnitLength(nn.Module):
    """Each row [B, D] divided by its length."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class NeighbourHead(nn.Module):
    """Cosine nearest neighbours, each voting with weight exp(similarity / temperature) (Wu 2018, arXiv 1805.01978).

    Args:
        x: float [n, D], what is known.
        label: int64 [n], its classes.
        classes: K.
        k: neighbours that vote; all where there are fewer.
        temperature: of the votes.
    """

    bank: Tensor
    label: Tensor

    def __init__(self, x: Tensor, label: Tensor, classes: int, k: int, temperature: float) -> None:
        super().__init__()
        self.k, self.temperature, self.classes = min(k, len(x)), temperature, classes
        self.register_buffer("bank", F.normalize(x.float(), dim=1))
        self.register_buffer("label", label.to(x.device))

    def forward(self, x: Tensor) -> Tensor:
        """float [B, K], log of each class's share of the votes, from features [B, D]."""
        similarity, neighbour = (F.normalize(x.float(), dim=1) @ self.bank.T).topk(self.k, dim=1)
        # Relative to the nearest neighbour, so that a small temperature does not overflow.
        weight = ((similarity - similarity[:, :1]) / self.temperature).exp()
        votes = torch.zeros(x.shape[0], self.classes, device=x.device).scatter_add_(1, self.label[neighbour], weight)
        return (votes / votes.sum(1, keepdim=True)).log().clamp_min(NEVER)


class Tempered(nn.Module):
    """Logits divided by a temperature (Guo et al. 2017, arXiv:1706.04599), after classes that were ruled out got a share.

    A class is ruled out where its logit is ``NEVER`` or minus infinity: no neighbour voted for it. No temperature could make
    such a certainty a probability, so the ruled-out classes get ``share`` / K each of what the others give up.

    Args:
        temperature: above 0; below 1 it makes confidences larger.
        share: of probability, that all K classes would have together if all were ruled out.
    """

    def __init__(self, temperature: float, share: float) -> None:
        super().__init__()
        self.temperature, self.share = temperature, share

    def forward(self, x: Tensor) -> Tensor:
        """[B, K] -> [B, K], of the precision given."""
        out = x <= x.amax(1, keepdim=True) + NEVER / 2
        each = self.share / x.shape[1]
        log_p = x.masked_fill(out, NEVER).log_softmax(1) + torch.log1p(-each * out.sum(1, keepdim=True))
        return torch.where(out, math.log(each), log_p) / self.temperature


class Mixture(nn.Module):
    """Several heads, each on a part of the embedding, averaged: the logarithm of the weighted mean of their probabilities.

    Args:
        heads: M of them, features to logits [B, K].
        parts: of each head where its part of the embedding begins and ends.
        weights: of each head, above 0; their sum is 1.
        geometric: whether the mean of the probabilities is the geometric one, which is as sure as its members are.
    """

    def __init__(
        self, heads: Sequence[nn.Module], parts: Sequence[tuple[int, int]], weights: Sequence[float], geometric: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.parts, self.weights = nn.ModuleList(heads), tuple(parts), tuple(weights)
        self.geometric = geometric

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> float32 [B, K]."""
        each = zip(self.heads, self.parts, strict=True)
        log_p = torch.stack([head(x[:, begin:end]).float().log_softmax(1) for head, (begin, end) in each])  # M B K
        weight = log_p.new_tensor(self.weights).view(-1, 1, 1)
        return (weight * log_p).sum(0).log_softmax(1) if self.geometric else (weight.log() + log_p).logsumexp(0)


class DinoHead(nn.Module):
    """DINO's head: an MLP to a bottleneck, unit length, cosines with the prototypes (Caron et al. 2021, arXiv:2104.14294)."""

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int, depth: int = 3) -> None:
        super().__init__()
        self.mlp = mlp(inputs, hidden, bottleneck, depth)
        self.prototypes = CosineHead(bottleneck if depth else inputs, prototypes, temperature=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> float32 [B, prototypes]."""
        return self.prototypes(self.mlp(x))


class Classifier(nn.Module):
    """Images [B, C, H, W] to float32 logits [B, K].

    Attributes:
        encoder: the encoder.
        head: embeddings [B, D] to logits; a number of classes stands for one linear layer.
        classes: names of the classes in the order of the logits, where they are known.
    """

    def __init__(self, encoder: Encoder, head: nn.Module | int, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, head) if isinstance(head, int) else head
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images)).float()


def save_predictor(
    file: WeightsFile, predictor: nn.Module, classes: tuple[str, ...] = (), tempered: Tempered | None = None
) -> None:
    """Writes encoder and head to a file that ``load_predictor`` can rebuild them from, without any other knowledge.

    Args:
        file: a path or a file object.
        predictor: applies ``predictor.head`` to ``predictor.encoder``; the head is made of the layers of this file.
        classes: class names in the order of the logits; by default those the predictor carries.
        tempered: the head's last layer in the file, which calibrates it.
    Raises:
        UserError: the predictor is of another kind.
    """
    encoder, head = getattr(predictor, "encoder", None), getattr(predictor, "head", None)
    if not isinstance(encoder, Encoder) or not isinstance(head, nn.Module):
        raise UserError(f"a predictor is saved as encoder and head, got {type(predictor).__name__}; use heads.Classifier")
    names = classes or tuple(getattr(predictor, "classes", ()))
    head = head if tempered is None else nn.Sequential(head, tempered)
    write_weights(file, {"predictor": encoder_record(encoder), **head_record(head), "classes": list(names)})


def load_predictor(file: WeightsFile) -> Classifier:
    """The predictor in a file of ``save_predictor``, on the CPU and in evaluation mode.

    Raises:
        UserError: not such a file.
    """
    record, source = read_weights(file), name_of(file)
    if "predictor" not in record:
        raise UserError(f"{source} is not an exported predictor; load it as an encoder or export it with save_predictor")
    head = head_from(record, source)
    classifier = Classifier(encoder_from(record["predictor"], source), head, tuple(record["classes"]))
    return classifier.eval()


def head_record(head: nn.Module) -> dict[str, Any]:
    """A head as plain values and tensors: its layers and its state. Raises UserError unless it is made of known layers."""
    return {"layers": _describe(head), "head": cpu_state(head)}


def head_from(record: Mapping[str, Any], source: str) -> nn.Module:
    """The inverse of ``head_record``; ``source`` names it in errors."""
    head = _rebuild(record["layers"])
    load_state(head, record["head"], source)
    return head


def _describe(head: nn.Module) -> list[Any]:
    """A head as nested lists [kind, arguments...] of plain values."""
    if isinstance(head, nn.Sequential):
        return ["sequence", *(_describe(layer) for layer in head)]
    if isinstance(head, nn.Linear):
        return ["linear", head.in_features, head.out_features, head.bias is not None]
    if isinstance(head, CosineHead):
        classes, inputs = head.weight.shape
        return ["cosine", inputs, classes, head.temperature]
    if isinstance(head, NeighbourHead):
        return ["neighbours", *head.bank.shape, head.classes, head.k, head.temperature]
    if isinstance(head, Tempered):
        return ["tempered", head.temperature, head.share]
    if isinstance(head, Mixture):
        each = zip(head.heads, head.parts, head.weights, strict=True)
        return ["mixture", head.geometric, *([*part, weight, _describe(one)] for one, part, weight in each)]
    if isinstance(head, UnitLength):
        return ["unit"]
    if isinstance(head, nn.BatchNorm1d):
        return ["batchnorm", head.num_features, head.affine]
    if isinstance(head, nn.ReLU):
        return ["relu"]
    if isinstance(head, nn.Dropout):
        return ["dropout", head.p]
    if isinstance(head, nn.Identity):
        return ["identity"]
    raise UserError(
        "a saved head is made of linear, cosine, neighbours, tempered, mixture, unit, batchnorm, relu, dropout and identity"
        " layers, got "
        f"{type(head).__name__}; compose the head of those"
    )


def _rebuild(description: list[Any]) -> nn.Module:
    kind, *values = description
    if kind == "sequence":
        return nn.Sequential(*(_rebuild(layer) for layer in values))
    if kind == "linear":
        return nn.Linear(values[0], values[1], bias=values[2])
    if kind == "cosine":
        return CosineHead(*values)
    if kind == "neighbours":
        n, dim, classes, k, temperature = values
        return NeighbourHead(torch.zeros(n, dim), torch.zeros(n, dtype=torch.int64), classes, k, temperature)
    if kind == "tempered":
        return Tempered(*values)
    if kind == "mixture":
        geometric, *members = values
        begins, ends, weights, heads = zip(*members, strict=True)
        return Mixture([_rebuild(head) for head in heads], list(zip(begins, ends, strict=True)), weights, geometric)
    if kind == "batchnorm":
        return nn.BatchNorm1d(values[0], affine=values[1])
    if kind == "dropout":
        return nn.Dropout(values[0])
    simple = {"relu": nn.ReLU, "identity": nn.Identity, "unit": UnitLength}
    if kind not in simple:
        raise UserError(f"a saved head has layers this version knows, got {kind!r}; update labelwise")
    return simple[kind]()
