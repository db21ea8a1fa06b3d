"""The fields of a study's encoders: which networks are tried, and the weights that each starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema, field_validator
from torch import nn

from methods.contracts import Method
from methods.parts.encoders import (
    ENCODERS,
    WITH_WEIGHTS,
    EncoderSpec,
    check_encoder,
    from_nothing,
    has_weights,
    is_file,
    only_frozen,
    start_of,
)
from orchestrator.study.extensions import in_python, left_behind
from orchestrator.study.fields import Strict, StudyError, lost
from search_spaces.domains import UserError, nearest

OWN = "own"
"""In ``init``: the encoder's own weights where it has any, else from nothing."""

_NAME = {"anyOf": [{"enum": sorted(ENCODERS)}, {"type": "string", "pattern": r"[/.]"}]}
_ENCODER = {"anyOf": [*_NAME["anyOf"], {"type": "array", "items": _NAME, "minItems": 1, "uniqueItems": True}]}
_START = {"type": ["string", "null"]}
_INIT = {"anyOf": [_START, {"type": "array", "items": _START, "minItems": 1, "uniqueItems": True}]}

Specs = dict[str, EncoderSpec]
"""By label: ``NAME``, or ``NAME from INIT`` where that is not what the encoder starts from by itself."""


class EncoderFields(Strict):
    """Which networks are tried, and the weights that each starts from.

    Attributes:
        encoder: name of the encoder, ``torchvision/NAME``, ``timm/NAME``, or a file: an exported encoder, a run folder or
            an ONNX file; in Python also an ``nn.Module``. A list compares them. Methods that need patch tokens take
            ``vit_encoder`` instead.
        vit_encoder: name of the encoder of methods that need patch tokens.
        encoder_size: pixels a side at which a pretrained ``encoder`` is shown the images; by default chosen by cost: as large
            as they are, but no larger than it was trained at and no smaller than 5/7 of that.
        init: the encoder's starting weights: by default its ``own`` where it has any (``lite0``), else none; ``none`` for from
            nothing, ``torchvision``, a weights file or a run folder. A list compares them, with each encoder that they fit.
    """

    encoder: Annotated[str | nn.Module | tuple[str | nn.Module, ...], WithJsonSchema(_ENCODER)] = "resnet_small"
    vit_encoder: Annotated[str, WithJsonSchema({"enum": sorted(ENCODERS)})] = "vit_tiny"
    encoder_size: int | None = Field(None, ge=32)
    init: Annotated[str | tuple[str, ...] | None, WithJsonSchema(_INIT)] = None

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoders(cls, value: object) -> object:
        return _one_or_several(value, "encoder", lambda each: isinstance(each, str | nn.Module))

    @field_validator("init", mode="before")
    @classmethod
    def _starts(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            value = tuple(OWN if each is None else each for each in value)
        value = _one_or_several(value, "start", lambda each: isinstance(each, str))
        return None if value == OWN else value

    def encoders(self) -> tuple[EncoderSpec, EncoderSpec]:
        """The (first) encoder, and that of methods which need patch tokens, each with where its weights start."""
        if any(left_behind("network", entry) for entry in self._entries()):
            raise StudyError(lost("network"))
        plain, tokens = self._combinations(), self._combinations(tokens=True)
        return next(iter(plain.values())), next(iter(tokens.values()))

    def specs(self) -> Specs:
        """The encoders by label, whatever the methods, but for ``vit_encoder``."""
        return self._combinations()

    def compared(self, methods: Mapping[str, Method]) -> Specs:
        """What the study compares by label; empty where every method has one encoder and one start."""
        both = {**self._combinations(tokens=True), **self._combinations()}
        return {label: both[label] for labels in self.offered(methods).values() for label in labels}

    def offered(self, methods: Mapping[str, Method]) -> dict[str, tuple[str, ...]]:
        """The labels that each method may be tried with; empty where nothing is compared.

        Methods on frozen features are offered what has weights, those that tune an encoder what has weights and can be
        trained, others what can be trained; where nothing of the kind is among the encoders, all.
        """
        found = self._offers(methods)
        return found if any(len(labels) > 1 for labels in found.values()) else {}

    def _offers(self, methods: Mapping[str, Method]) -> dict[str, tuple[str, ...]]:
        found = {}
        for name, method in methods.items():
            specs = self._combinations(method.encoder == "vit")
            found[name] = tuple(label for label, spec in specs.items() if _suits(method, spec)) or tuple(specs)
        return found

    def check_encoders(self, methods: Mapping[str, Method]) -> None:
        """Raises StudyError on an unknown encoder, and on one that nothing can be started with or that no method can use."""
        if self.vit_encoder not in ENCODERS:
            raise StudyError(f"vit_encoder: {self.vit_encoder} is not an encoder{nearest(self.vit_encoder, ENCODERS)}")
        entries, starts = self._entries(), self._inits()
        for entry in entries:
            if isinstance(entry, str) and not left_behind("network", entry):
                try:
                    check_encoder(entry)
                except UserError as error:
                    raise StudyError(f"encoder: {error}") from error
        if len(entries) == len(starts) == 1 or any(left_behind("network", entry) for entry in entries):
            return
        specs = self._combinations()
        for entry in entries:
            if not any(entry in (spec.name, spec.module) for spec in specs.values()):
                fits = "has weights of its own" if _bound(entry) else "has none of torchvision's"
                raise StudyError(f"encoder {_name(entry)} {fits}, got init {', '.join(map(str, starts))}; add {OWN} to init")
        for start in starts:
            if not any(_makes_sense(entry, start) for entry in entries):
                raise StudyError(f"init {start} fits none of the encoders {', '.join(map(_name, entries))}; leave it out")
        taken = {label for labels in self._offers(methods).values() for label in labels}
        unused = next((label for label in specs if label not in taken), None)
        if methods and unused:
            raise StudyError(
                f"encoder {unused} suits none of the methods {', '.join(methods)}: those on frozen features need weights,"
                " others what can be trained, or vit_encoder; leave it out, or add a method that can use it"
            )

    def plain_encoder(self) -> str | list[str]:
        """``encoder`` for a run folder."""
        names = [entry if isinstance(entry, str) else in_python("network") for entry in self._entries()]
        return names if len(names) > 1 else names[0]

    def _entries(self) -> tuple[str | nn.Module, ...]:
        return self.encoder if isinstance(self.encoder, tuple) else (self.encoder,)

    def _inits(self) -> tuple[str | None, ...]:
        given = self.init if isinstance(self.init, tuple) else (self.init,)
        return tuple(None if each == OWN else each for each in given)

    def _combinations(self, tokens: bool = False) -> Specs:
        """Encoders with the starts that make sense, in the study's order; of such as come to the same, the first.

        Args:
            tokens: those of methods that need patch tokens.
        """
        entries: tuple[str | nn.Module, ...] = (self.vit_encoder,) if tokens else self._entries()
        starts = self._inits()
        if tokens:
            starts = tuple("none" if start == "torchvision" else start for start in starts)
        alone = len(entries) == len(starts) == 1
        found: Specs = {}
        for entry in entries:
            # What sees images as large as they are has no size.
            size = None if tokens or not (alone or _resizes(entry)) else self.encoder_size
            for start in starts:
                if alone or _makes_sense(entry, start):
                    spec = (
                        EncoderSpec("", start, size, entry) if isinstance(entry, nn.Module) else EncoderSpec(entry, start, size)
                    )
                    found.setdefault(label_of(spec), spec)
        return found


def label_of(spec: EncoderSpec) -> str:
    """The name, and what the encoder starts from where it is not its own weights, or nothing where it has none."""
    if spec.module is not None:
        return type(spec.module).__name__
    usual = (None, "torchvision") if has_weights(spec.name) else (None, "none")
    return spec.name if spec.init in usual else f"{spec.name} from {spec.init}"


def line_of(spec: EncoderSpec) -> str:
    """An encoder and what it starts from, for people."""
    start = start_of(spec)
    name = spec.name if spec.module is None else type(spec.module).__name__
    return f"{name}, starting from {start}" if start != "none" else name


def _one_or_several(value: object, what: str, fits: Callable[[object], bool]) -> object:
    """A list as a tuple, one of a single entry as the entry. Raises ValueError on no entry, and on a doubled or another one."""
    if not isinstance(value, list | tuple):
        return value
    if not value:
        raise ValueError(f"must name at least one {what}")
    if not all(map(fits, value)):
        raise ValueError("must be a name, a file, or a list of these")
    names = [_name(each) for each in value if not left_behind("network", each)]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise ValueError(f"must name each {what} once, but {doubled} stands there twice")
    return tuple(value) if len(value) > 1 else value[0]


def _name(entry: Any) -> str:
    return str(entry) if isinstance(entry, str) else type(entry).__name__


def _bound(entry: str | nn.Module) -> bool:
    """Whether it comes with weights that nothing else takes the place of."""
    return isinstance(entry, nn.Module) or is_file(entry)


def _resizes(entry: str | nn.Module) -> bool:
    return isinstance(entry, str) and (has_weights(entry) or is_file(entry))


def _makes_sense(entry: str | nn.Module, start: str | None) -> bool:
    """Whether an encoder can begin from there, as far as their names tell."""
    if isinstance(entry, nn.Module) or is_file(entry):
        return start is None
    return start != "torchvision" or has_weights(entry) or entry in WITH_WEIGHTS


def _suits(method: Method, spec: EncoderSpec) -> bool:
    adapts = method.family == "adapt"
    return not (adapts and from_nothing(spec)) and (method.on_features or not only_frozen(spec))
