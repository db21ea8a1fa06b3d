"""The fields of a study's search: what is tried, how long it trains, and which knobs move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from optuna.samplers import BaseSampler
from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from methods.catalogue import CATALOGUE, method
from methods.contracts import Method
from orchestrator.allocation import Allocation, JointTpe
from orchestrator.samplers import Sampler
from orchestrator.strategies.contract import Strategy
from orchestrator.study.encoders import EncoderFields
from orchestrator.study.extensions import Extension, in_python
from orchestrator.study.fields import StudyError, lost, one_or_more, single
from orchestrator.study.shapes import OVERRIDES, one_or_more_schema
from search_spaces.domains import nearest
from search_spaces.space import Override, Space, parse_override

SPAN = 27
"""The highest rung over the lowest one, at the most, where rungs are in seconds."""


CHOICES: dict[str, tuple[type, ...]] = {"strategy": (Strategy,), "allocation": (Allocation, JointTpe), "sampler": (Sampler,)}
"""Fields that choose by name, and what an object in their place derives from."""


_METHODS = {"anyOf": [*one_or_more_schema(list(CATALOGUE))["anyOf"], {"type": "null"}]}


class SearchFields(EncoderFields):
    """What is tried, how long it trains, and which knobs move.

    Attributes:
        methods: names from the catalogue; in Python also ``Method`` objects of your own. None to have them proposed from the
            data, the encoders at hand and the budget, with a reason for each.
        epochs: the highest rung.
        seconds: the highest rung in seconds of training, instead of ``epochs``.
        epoch_images: training images in an epoch; None for max(pool size, 10,240).
        reduction: of every so many trials at a rung, one goes on (ASHA); 1 trains every trial to the end.
        strategy: who trains on, and how far: a name, or a name with its settings; in Python also an object.
        allocation: which method gets the next trial: a name, or a name with its settings; in Python also an object.
        sampler: which knobs it gets: a name, or a name with its settings; in Python also an object, the class of an Optuna
            sampler, or a function from ``seed`` to one.
        search: ``method.knob`` or ``*.knob`` -> a range, choices or a value.
    """

    methods: Annotated[tuple[str | Method | Extension, ...] | None, WithJsonSchema(_METHODS)] = None
    epochs: int = Field(10, ge=1)
    seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    epoch_images: int | None = Field(None, ge=1)
    reduction: int = Field(3, ge=1)
    strategy: Any = "asha_stopping"
    allocation: Any = "tpe"
    sampler: Any = "tpe"
    search: Annotated[Mapping[str, Any], WithJsonSchema(OVERRIDES)] = Field(default_factory=dict)

    _several_methods = field_validator("methods", mode="before")(one_or_more)

    @model_validator(mode="before")
    @classmethod
    def _one_top(cls, raw: Any) -> Any:
        """The highest rung is in epochs or in seconds; an empty line leaves it to the other."""
        epochs, seconds = raw.get("epochs"), raw.get("seconds")
        if epochs is not None and seconds is not None:
            raise StudyError(
                f"the highest rung is in epochs or in seconds, got epochs {epochs} and seconds {seconds}; give one"
            )
        return {key: value for key, value in raw.items() if key != "epochs" or value is not None}

    @field_validator(*CHOICES)
    @classmethod
    def _one_choice(cls, value: object, info: ValidationInfo) -> object:
        field = str(info.field_name)
        if isinstance(value, Mapping):
            single(field, value)
        elif isinstance(value, BaseSampler):
            raise ValueError(
                f"must be the sampler's class, since it is made anew for every draw, with a seed; give {type(value).__name__},"
                f" or functools.partial({type(value).__name__}, ...) with its settings"
            )
        elif not isinstance(value, (str, Extension, *CHOICES[field])) and not (field == "sampler" and callable(value)):
            raise ValueError(f"must be a name, one name with its settings or, in Python, {_kind(field)} of your own")
        return value

    @property
    def method_names(self) -> list[str]:
        """The names of the study's methods, in its order; none before they are proposed."""
        return [m if isinstance(m, str) else _own(m).name for m in self.methods or ()]

    def catalogue(self) -> dict[str, Method]:
        """The study's methods by name."""
        return {
            name: method(m) if isinstance(m, str) else _own(m)
            for name, m in zip(self.method_names, self.methods or (), strict=True)
        }

    def space(self, images: int | None = None) -> Space:
        """The search space, for so many training images. Raises KnobError where ``search`` names no knob or leaves a range."""
        catalogue = self.catalogue()
        overrides: dict[str, Override] = {}
        for pattern, raw in self.search.items():
            owner, _, knob = str(pattern).partition(".")
            if owner not in catalogue and not set("*?[") & set(owner):
                known = f"; {owner} is not among this study's methods" if owner in CATALOGUE else nearest(owner, catalogue)
                raise StudyError(f"search.{pattern} names no method of the study{known}")
            declaring = [m for n, m in catalogue.items() if owner == n or owner not in catalogue]
            item = next((m.knobs()[knob] for m in declaring if knob in m.knobs()), None)
            overrides[str(pattern)] = parse_override(raw, item, f"search.{pattern}")
        return Space({name: m.config for name, m in catalogue.items()}, overrides, images, self.offered(catalogue))

    def choice(self, field: str) -> Any:
        """Of strategy, allocation or sampler: a name of ours with its settings (str, dict), or the object of one's own.

        Raises:
            StudyError: code of one's own does not take its settings, or an object stayed behind in a script.
        """
        value = getattr(self, field)
        if value == in_python(field):
            raise StudyError(lost(field))
        if isinstance(value, Extension):
            return value.made()
        if isinstance(value, Mapping):
            return single(field, value)
        return (value, {}) if isinstance(value, str) else value

    def strategy_choice(self) -> Any:
        """``choice`` of the strategy."""
        return self.choice("strategy")

    def plain_choice(self, field: str) -> Any:
        """Strategy, allocation or sampler for a run folder."""
        value = getattr(self, field)
        if isinstance(value, Extension):
            return value.plain()
        return value if isinstance(value, str | Mapping) else in_python(field)

    def rungs(self, reduction: int | None = None) -> tuple[Any, ...]:
        """Epochs (int) or seconds (float) at which trials are scored, ascending; the last is the highest.

        Args:
            reduction: of the strategy; None for the study's own field.
        """
        reduction = self.reduction if reduction is None else reduction
        if self.seconds is not None:
            steps = [0]
            while reduction > 1 and reduction ** (steps[-1] + 1) <= SPAN:
                steps.append(steps[-1] + 1)
            return tuple(self.seconds / reduction**step for step in reversed(steps))
        if reduction == 1:
            return (self.epochs,)
        rungs = [self.epochs]
        while rungs[-1] / reduction >= 1:
            rungs.append(round(rungs[-1] / reduction))
        return tuple(sorted(set(rungs)))

    def check_methods(self) -> None:
        """Raises StudyError or UserError on no method, an unknown or a doubled one; ``search`` alone names some before they are
        proposed.
        """
        if self.methods is None:
            for searched in self.searched():
                method(searched)
            return
        names = self.method_names
        if not names:
            raise StudyError("methods must name at least one method, got an empty list; see 'labelwise methods'")
        doubled = next((n for n in names if names.count(n) > 1), None)
        if doubled:
            raise StudyError(f"methods must name each method once, got {doubled} twice")
        for name in self.methods:
            if isinstance(name, str):
                method(name)

    def searched(self) -> tuple[str, ...]:
        """The methods whose knobs ``search`` names, those of patterns left aside."""
        owners = dict.fromkeys(str(pattern).partition(".")[0] for pattern in self.search)
        return tuple(owner for owner in owners if not set("*?[") & set(owner))

    def plain_methods(self) -> list[str] | None:
        """``methods`` for a run folder."""
        return None if self.methods is None else [m if isinstance(m, str) else m.name for m in self.methods]

    def plain_search(self) -> dict[str, Any]:
        """``search`` with domains of Python written as YAML has them."""
        return {key: _plain_override(value) for key, value in self.search.items()}


def _kind(field: str) -> str:
    return f"{'an' if field[0] in 'aeiou' else 'a'} {field.capitalize()}"


def _own(entry: Method | Extension) -> Method:
    return entry.target if isinstance(entry, Extension) else entry


def _plain_override(value: Any) -> Any:
    if not hasattr(value, "scale"):
        return value
    if hasattr(value, "options"):
        return {"choices": list(value.options)}
    # Every switch is written, since a range without any is searched on its knob's own scale.
    switches = {s: getattr(value, s) for s in ("log", "log1m", "power_of_two") if hasattr(value, s)}
    return {"low": value.low, "high": value.high, **switches}
