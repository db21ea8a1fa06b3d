"""Any network as an encoder: torchvision's and timm's without their classifier, or a module of one's own.

The embedding's width, the layers and the modules that make them are found by one pass over a blank image.

Deviation from how such networks are trained elsewhere: no dropout and no stochastic depth, whose masks would not be a function
of the study's seed.

B images, C channels, H height, W width, D embedding, n tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.encoder import Encoder, Options, Shape, Statistics
from methods.parts.depthwise import quick_depthwise
from methods.parts.encoder_base import Normalise, check_size
from methods.parts.modes import device_of, evaluating
from methods.parts.shown import Shown, shown_size
from search_spaces.domains import UserError

MOST = 0.8
"""Share of a network's parameters in one of its children from which the layers are looked for inside that child."""


@dataclass(frozen=True)
class Seeing:
    """How a network wants to see images.

    Attributes:
        mean, std: of its channels, by which it normalises values in [0, 1].
        usual: pixels a side that it was trained at.
        square: whether it takes no other size.
    """

    mean: Statistics
    std: Statistics
    usual: int
    square: bool = False


@dataclass(frozen=True)
class _Layer:
    """A module whose output is a map: [B, c, h, w], [B, h, w, c], or tokens [B, before + h * w, c]."""

    name: str
    kind: Literal["first", "last", "tokens"]
    before: int = 0

    def map_of(self, x: Tensor) -> Tensor:
        """float [B, c, h, w]."""
        if self.kind == "first":
            return x
        if self.kind == "last":
            return x.permute(0, 3, 1, 2)
        side = math.isqrt(x.shape[1] - self.before)
        return x[:, self.before :].transpose(1, 2).unflatten(2, (side, side))


class BackboneEncoder(Encoder):
    """A network that turns images into vectors or maps; maps are averaged over positions.

    Attributes:
        net: the network.
        shown: how it is shown images.
        left: names of layers that a published state holds besides: the classifier.
    """

    def __init__(
        self,
        shape: Shape,
        mean: Statistics,
        std: Statistics,
        net: nn.Module,
        seeing: Seeing | None,
        size: list[int] | int | None = None,
        left: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            shape: (C, H, W) of the study's images.
            mean, std: of the data; a network of one's own is shown images normalised by them.
            net: images [B, c, h, w] -> [B, D] or [B, D, h', w'].
            seeing: how it wants to see images; None for a network of one's own: as the study has them.
            size: pixels at which it is shown them: a side, or height and width; None to have it chosen (``shown_size``).
            left: names of layers that a published state of the network holds besides.
        Raises:
            UserError: the images are too small, the size is not one that it takes, or its output is no fixed embedding.
        """
        super().__init__()
        label = type(net).__name__
        check_size(label, shape)
        self.shape, self.left = shape, left
        self.resizable = seeing is not None and not seeing.square
        self.normalise = Normalise(mean, std)  # this encoder's file reads it
        if seeing is None:
            self.shown = Shown(shape, mean, std, shape[1:], square=True)
        else:
            self.shown = Shown(shape, seeing.mean, seeing.std, _size(shape, seeing, size, label), seeing.square)
            _still(net)
        quick_depthwise(net)
        self.net = net.to(memory_format=torch.channels_last)
        self.dim, self._trunk, self._parts = _looked_at(self.net, len(self.shown.normalise.mean[0]), self.shown.size)
        self.layers = tuple(layer.name for layer in self._trunk) or ("embedding",)

    def forward(self, images: Tensor) -> Tensor:
        return _vector(self.net(self.shown(images)))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(layer: _Layer) -> Any:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                found[layer.name] = layer.map_of(output)

            return hook

        handles = [self.net.get_submodule(layer.name).register_forward_hook(keep(layer)) for layer in self._trunk]
        try:
            z = self(images)
        finally:
            for handle in handles:
                handle.remove()
        return found or {"embedding": z[:, :, None, None]}

    def options(self) -> Options:
        return {"size": list(self.shown.size)}

    def translated(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if any(name.startswith("net.") for name in state):
            return dict(state)
        outside = tuple(f"{name}." for name in self.left)
        return {f"net.{name}": value for name, value in state.items() if not name.startswith(outside)}

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        found: dict[str, tuple[nn.Module, ...]] = {}
        for number, layer in enumerate(self._trunk):
            others = (self.net.get_submodule(name) for name in self._parts[layer.name])
            held = [nn.ParameterList(m.parameters(recurse=False)) if any(m.children()) else m for m in others]
            shown = [self.shown] if number == 0 else []
            found[layer.name] = (*shown, *held, self.net.get_submodule(layer.name))
        return found


def _size(shape: Shape, seeing: Seeing, size: list[int] | int | None, label: str) -> tuple[int, int]:
    if isinstance(size, list):
        return size[0], size[1]
    if not seeing.square:
        return shown_size(shape, seeing.usual, size=size)
    if size not in (None, seeing.usual):
        raise UserError(f"{label} takes images of {seeing.usual} x {seeing.usual} pixels, got size {size}; leave the size out")
    return seeing.usual, seeing.usual


def _still(net: nn.Module) -> None:
    """Takes dropout and stochastic depth out of a network, in place."""
    every: list[Any] = list(net.modules())
    for module in every:
        kind = type(module).__name__
        if isinstance(module, nn.modules.dropout._DropoutNd) or kind == "StochasticDepth":  # the latter torchvision's
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif kind == "DropPath":  # timm's
            module.drop_prob = 0.0


def _vector(output: Any) -> Tensor:
    """float [B, D].

    Raises:
        UserError: the output is no tensor of one vector or map an image.
    """
    if isinstance(output, Tensor) and output.dim() in (2, 4) and output.is_floating_point():
        return output.mean((2, 3)) if output.dim() == 4 else output
    given = f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise UserError(f"an encoder must give one tensor [B, D] or [B, D, h, w] of floats, got {given}; return the embedding")


def _looked_at(
    net: nn.Module, channels: int, size: tuple[int, int]
) -> tuple[int, tuple[_Layer, ...], dict[str, tuple[str, ...]]]:
    """The embedding's width, the layers with maps in order, and by layer the other modules that hold its parameters."""
    names = {module: name for name, module in net.named_modules()}
    begun: list[str] = []
    ended: list[tuple[str, Any]] = []

    def begin(module: nn.Module, inputs: object) -> None:
        begun.append(names[module])

    def end(module: nn.Module, inputs: object, output: Any) -> None:
        ended.append((names[module], output))

    handles = [handle for m in names for handle in (m.register_forward_pre_hook(begin), m.register_forward_hook(end))]
    try:
        blank = torch.zeros(2, channels, *size, device=device_of(net))
        with torch.no_grad(), evaluating(net):
            output = net(blank.contiguous(memory_format=torch.channels_last))
    except UserError:
        raise
    except Exception as error:  # whatever a module of somebody else's raises
        reason = " ".join(str(error).split())
        raise UserError(
            f"{type(net).__name__} must take images [B, {channels}, {size[0]}, {size[1]}], but it failed on them ({reason});"
            " give another encoder or other images"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    z = _vector(output)
    if len(z) != 2:
        raise UserError(f"an encoder gives one embedding an image, got {len(z)} of 2 images; return [B, D]")
    trunk = _trunk(net, ended, size)
    return z.shape[1], trunk, _shared_out(net, begun, ended, trunk)


def _trunk(net: nn.Module, ended: list[tuple[str, Any]], size: tuple[int, int]) -> tuple[_Layer, ...]:
    """The children with maps of the innermost module that holds most of the parameters."""
    times = [name for name, _ in ended]
    outputs = dict(ended)
    where, prefix = net, ""
    while True:
        # Only what has maps counts: a classifier's hidden layers may hold more.
        inside = [(key, child) for key, child in where.named_children() if _any_map(outputs, f"{prefix}{key}", size)]
        sizes = [sum(p.numel() for p in child.parameters()) for _, child in inside]
        share = max(sizes, default=0) / max(sum(sizes), 1)
        main = inside[sizes.index(max(sizes))] if share >= MOST else None
        if main is None or not any(_any_map(outputs, f"{prefix}{main[0]}.{key}", size) for key, _ in main[1].named_children()):
            break
        where, prefix = main[1], f"{prefix}{main[0]}."
    children = [f"{prefix}{name}" for name, child in where.named_children() if any(True for _ in child.parameters())]
    children = sorted((name for name in children if times.count(name) == 1), key=times.index)
    found = [(name, kind) for name in children if (kind := _kind(outputs[name], size)) is not None]
    kept = []
    for place, (name, kind) in enumerate(found):
        after = found[place + 1][0] if place + 1 < len(found) else None
        both = [name, after] if after is not None else []
        leaves = both and not any(any(net.get_submodule(each).children()) for each in both)
        # Of a convolution and the normalisation behind it the latter's map is the layer's.
        if after is not None and leaves and outputs[after].shape == outputs[name].shape:
            continue
        kept.append(_Layer(name, kind[0], kind[1]))
    return tuple(kept)


def _any_map(outputs: dict[str, Any], name: str, size: tuple[int, int]) -> bool:
    """Whether a module, or one inside it, gave a map."""
    return any(_kind(x, size) is not None for key, x in outputs.items() if key == name or key.startswith(f"{name}."))


def _kind(output: Any, size: tuple[int, int]) -> tuple[Literal["first", "last", "tokens"], int] | None:
    """How a module's output is a map, where it is one of more than one place, and how many tokens stand before the places."""
    if not isinstance(output, Tensor) or len(output) != 2:
        return None
    if output.dim() == 4:
        _, one, two, three = output.shape
        proportion = size[0] / size[1]
        as_first, as_last = (abs(math.log(h / w / proportion)) for h, w in ((two, three), (one, two)))
        kind: Literal["first", "last"] = "first" if as_first <= as_last else "last"
        return (kind, 0) if min((two, three) if kind == "first" else (one, two)) > 1 else None
    if output.dim() == 3 and size[0] == size[1]:
        before = next((k for k in range(6) if math.isqrt(max(output.shape[1] - k, 0)) ** 2 == output.shape[1] - k > 1), None)
        return ("tokens", before) if before is not None else None
    return None


def _shared_out(
    net: nn.Module, begun: list[str], ended: list[tuple[str, Any]], trunk: tuple[_Layer, ...]
) -> dict[str, tuple[str, ...]]:
    """Modules with parameters outside of the layers' own, each by the first layer that ends after it began."""
    places: dict[str, list[str]] = {layer.name: [] for layer in trunk}
    for name, module in net.named_modules():
        inside = any(name == own or name.startswith(f"{own}.") for own in places)
        if inside or not any(True for _ in module.parameters(recurse=False)) or not trunk:
            continue
        later = begun[begun.index(name) :] if name in begun else []
        layer = next((n for n in later if n in places), trunk[-1].name)
        places[layer].append(name)
    return {layer: tuple(names) for layer, names in places.items()}
