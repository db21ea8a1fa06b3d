"""A study: data, label budget, methods, search, compute budget and protocol. Written as YAML or in Python, checked strictly."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from methods.catalogue import CATALOGUE, method
from methods.contracts import Method
from methods.data import budget
from methods.data.episodic import NO_TEST
from methods.health import SIGNALS
from methods.parts.encoders import ENCODERS, EncoderSpec
from methods.protocols import protocol
from methods.protocols.contract import Protocol
from orchestrator.engine.records import Purpose
from search_spaces.domains import UserError, nearest
from search_spaces.space import Override, Space, parse_override


class StudyError(UserError):
    """A study that cannot be run as it is written."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


class Selection(_Strict):
    """How the best configuration is chosen after the search.

    Attributes:
        top: how many configurations are retrained.
        seeds: with how many fresh seeds each.
        refit: whether methods that learn from labels are also trained on the whole label budget, validation labels
            included, for the test score and the exported model. Few-shot studies refit after a cross-validation only.
        refit_seeds: with how many fresh seeds each is trained on the whole budget; None for as many as ``seeds``.
        join: few-shot: the exported encoder is the trainings of all seeds together, their embeddings side by side. The scores
            stay those of single trainings.
    """

    top: int = Field(3, ge=1)
    seeds: int = Field(3, ge=1)
    refit: bool = True
    refit_seeds: int | None = Field(None, ge=1)
    join: bool = False

    def repeats(self, purpose: Purpose) -> int:
        """Trainings of each finalist."""
        return self.refit_seeds if purpose == "refit" and self.refit_seeds is not None else self.seeds


class FewShotTask(_Strict):
    """The few-shot task: N-way K-shot episodes on classes that training never sees.

    Attributes:
        ways, shots, queries: of an evaluation episode.
        episodes: evaluation episodes, the same for every method.
        within_group: every episode's classes come from one group (alphabet).
        hold_out: whether validation (and, without a test set, test) classes are held out by class or by whole
            group; None for groups where there are at least three.
        validation: share of the classes or groups that is held out for validation, where the data sets none apart itself.
        cross_validate: each group is held out for validation in turn. A configuration's score is the mean over the turns,
            which multiply the time; the finalists are refitted on all groups for the test and the exported model.
        test_groups: only these groups of the test set are used.
        rotations: rotations by 90 degrees become classes of their own in training.
    """

    ways: int = Field(5, ge=2)
    shots: int = Field(1, ge=1)
    queries: int = Field(15, ge=1)
    episodes: int = Field(600, ge=2)
    within_group: bool = False
    hold_out: Literal["class", "group"] | None = None
    validation: float = Field(0.2, gt=0, lt=1)
    cross_validate: bool = False
    test_groups: tuple[str, ...] = ()
    rotations: bool = False

    @field_validator("test_groups", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class Limit(_Strict):
    """What a health signal may be before its trial is stopped; at least one of the two bounds is given.

    Attributes:
        below, above: the values that stop.
        epochs: for so many epochs in a row, the signal being told in each of them.
    """

    below: float | None = Field(None, allow_inf_nan=False)
    above: float | None = Field(None, allow_inf_nan=False)
    epochs: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _bounded(self) -> Limit:
        if self.below is None and self.above is None:
            raise ValueError("a limit needs a bound, such as {below: 0.05}")
        if self.below is not None and self.above is not None and self.below > self.above:
            raise ValueError("below must not exceed above, or every value would stop")
        return self

    def broken_by(self, value: float) -> str:
        """The bound that ``value`` breaks, in words, or an empty string."""
        if self.below is not None and value < self.below:
            return f"below {self.below:g}"
        if self.above is not None and value > self.above:
            return f"above {self.above:g}"
        return ""


IN_PYTHON = "(a function given in Python)"
"""Stands for the objective in a run folder, which can hold none."""

COLLAPSE = {"embedding_sd": Limit(below=0.05), "projection_sd": Limit(below=0.05)}
"""The limits of a study that names none: plain collapse only, where the mean cosine of two images exceeds .997.

A wrong stop costs more than a wasted trial, which the rungs end too. After an epoch of 2,048 images of CIFAR-10 the catalogue
lay at .21 and more; after two epochs of 512 digits at the lowest searched learning rate, still nearly untrained, at .09 and
more; BYOL without its predictor at .07, which a study that wants it stopped must ask for.
"""


class Study(_Strict):
    """Everything a study is. Any field may be given in YAML under the same name.

    Attributes:
        data: path of a folder, zip or npz; an embedded or torchvision name; several of these in a list; or, in Python, a
            tuple of arrays (images, labels).
        test: test images: a path or name, a share of ``data`` in (0, 1), or None for a stratified holdout; after ``none`` (only
            few-shot) no test is made.
        labels: ``all``, or the label budget as a number: drawn class-balanced, validation labels included. Few-shot studies use
            every label of their training classes, whatever is given here.
        validation: share of the labels that validates, at most half; None for half below 500 labels, a fifth from there on.
        imbalance: labels of the most frequent class over those of the rarest, 1 or more; needs a number of labels.
        mismatch: share, 0 to 0.75, of the unlabelled pool that is of other classes than the task's; needs a number of
            labels. Even 0 makes 60% of the classes the task, to be compared with; None leaves pool and classes alone.
        task: ``classification`` or ``few_shot`` (then ``few_shot`` describes the episodes).
        methods: names from the catalogue; in Python also ``Method`` objects of your own.
        encoder: name of the encoder; methods that need patch tokens take ``vit_encoder`` instead.
        init: the encoder's starting weights: ``none``, ``torchvision``, a weights file or a run folder.
        trials: configurations that the search tries; retraining comes on top.
        epochs: the highest rung.
        epoch_images: training images in an epoch; None for max(pool size, 10,240).
        reduction: of every so many trials at a rung, one goes on (ASHA); 1 trains every trial to the end.
        selection: how the winner is chosen.
        stop: health signal -> the limit beyond which a trial of the search ends early, see ``methods.health``. It ends as
            pruned, keeps its scores, and its reason says so; a method's defaults train to the end all the same, so that
            every method is seen at full length. Nothing counts before the method's ``min_epochs``, nor in the first steps
            of a stage. By default only plain collapse stops a trial, since its later epochs would be wasted; {} stops none.
        search: ``method.knob`` or ``*.knob`` -> a range, choices or a value.
        protocol: how a trained method is scored; None for the task's default. A name, or a name with its settings.
        objective: in Python: from a ``Score`` to the number that the search maximises, instead of the score's value.
        seed: of everything random in the study.
        size: images are resized to this many pixels; None keeps or chooses as ``methods.data`` says.
        on_bad_image: ``refuse`` a data set with an unreadable image, or ``skip`` such images and name them.
        workers: workers that train one trial together.
        slots: trials at a time; None for what the machine or cluster carries.
        address: of a running Ray cluster; None for this machine.
        precision: ``auto``, ``fp32`` or ``bf16``.
        out: the run folder; None for ``runs/<study name>``.
        name: for people and for the default run folder.
        earlier: run folders of earlier studies whose trials seed this one's search.
    """

    data: Any
    test: Any = None
    labels: int | Literal["all"] = "all"
    validation: float | None = None
    imbalance: float = 1.0
    mismatch: float | None = None
    task: Literal["classification", "few_shot"] = "classification"
    few_shot: FewShotTask = FewShotTask()
    methods: tuple[str | Method, ...] = ("supervised", "simclr", "moco", "mae", "mean_teacher", "fixmatch")
    encoder: str = "resnet_small"
    vit_encoder: str = "vit_tiny"
    init: str = "none"
    trials: int = Field(16, ge=1)
    epochs: int = Field(10, ge=1)
    epoch_images: int | None = Field(None, ge=1)
    reduction: int = Field(3, ge=1)
    selection: Selection = Selection()
    stop: Mapping[str, Limit] = Field(default_factory=lambda: dict(COLLAPSE))
    search: Mapping[str, Any] = Field(default_factory=dict)
    protocol: str | Mapping[str, Any] | None = None
    objective: Any = None
    seed: int = Field(0, ge=0)
    size: int | None = Field(None, ge=4, le=1024)
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    workers: int = Field(1, ge=1)
    slots: int | None = Field(None, ge=1)
    address: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    out: str | None = None
    name: str = "study"
    earlier: tuple[str, ...] = ()

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise StudyError(_one_line(error, type(self))) from None

    @field_validator("methods", "earlier", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @field_validator("search", "selection", "few_shot", "stop", mode="before")
    @classmethod
    def _blank(cls, value: object, info: Any) -> object:
        """A heading whose lines are all commented out says nothing."""
        return cls.model_fields[info.field_name].get_default(call_default_factory=True) if value is None else value

    @field_validator("objective")
    @classmethod
    def _callable(cls, value: object) -> object:
        if not (value is None or value == IN_PYTHON or callable(value)):
            raise ValueError("must be a function in Python, from a Score to a number")
        return value

    @field_validator("data", "test")
    @classmethod
    def _known_kind(cls, value: object, info: Any) -> object:
        if isinstance(value, Path):
            return str(value)
        listed = isinstance(value, list | tuple) and len(value) > 0
        listed = listed and all(isinstance(v, str | os.PathLike | np.ndarray) for v in cast(Sequence[object], value))
        share = info.field_name == "test" and (value is None or isinstance(value, float))
        if not (isinstance(value, str) or listed or share):
            raise ValueError("must be a path, a name, a list of them or a tuple of arrays")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        names = self.method_names
        if not names:
            raise StudyError("methods must name at least one method, got an empty list; see 'labelwise methods'")
        doubled = next((n for n in names if names.count(n) > 1), None)
        if doubled:
            raise StudyError(f"methods must name each method once, got {doubled} twice")
        for name in self.methods:
            if isinstance(name, str):
                method(name)
        if self.trials < len(names):
            raise StudyError(
                f"trials must be at least the number of methods, {len(names)}, so that each is tried once, got {self.trials}"
            )
        for field, name in (("encoder", self.encoder), ("vit_encoder", self.vit_encoder)):
            if name not in ENCODERS:
                raise StudyError(f"{field}: {name} is not an encoder{nearest(name, ENCODERS)}")
        if self.task == "few_shot":
            for field, value in (("validation", self.validation), ("imbalance", self.imbalance), ("mismatch", self.mismatch)):
                if value != type(self).model_fields[field].default:
                    remedy = "set few_shot.validation" if field == "validation" else "leave it out"
                    raise StudyError(f"{field} belongs to task classification, got {value} for few_shot; {remedy}")
        budget.check(self.labels, self.test, self.validation, self.imbalance, self.mismatch)
        if self.test == NO_TEST and self.task != "few_shot":
            raise StudyError(f"test: {NO_TEST} is for task: few_shot, got {self.task}; leave test out for a holdout")
        self._check_few_shot()
        unknown = next((name for name in self.stop if name not in SIGNALS), None)
        if unknown is not None:
            raise StudyError(f"stop.{unknown} is not a health signal{nearest(unknown, SIGNALS)}")
        self.scoring()
        self.space()
        return self

    def _check_few_shot(self) -> None:
        task = self.few_shot
        if self.selection.join and self.task != "few_shot":
            raise StudyError(f"selection.join is for task: few_shot, got {self.task}; leave it out")
        if self.task == "few_shot" and self.scoring().name != "few_shot":
            raise StudyError(
                f"task few_shot has new classes to be told apart from few images, which protocol few_shot scores, got "
                f"{self.scoring().name}; leave protocol out"
            )
        refitted = self.selection.refit and (self.task != "few_shot" or task.cross_validate)
        if self.selection.refit_seeds is not None and not refitted:
            raise StudyError(
                f"selection.refit_seeds is for finalists that are trained on the whole budget, got {self.selection.refit_seeds}"
                " where none are (refit: false, or few-shot without cross_validate); leave it out"
            )
        if not task.cross_validate:
            return
        if self.task != "few_shot":
            raise StudyError(f"few_shot.cross_validate is for task: few_shot, got {self.task}; set the task or leave it out")
        if task.hold_out == "class":
            raise StudyError("few_shot.cross_validate leaves out whole groups, got hold_out: class; leave one of them out")
        if not self.selection.refit:
            raise StudyError(
                "few_shot.cross_validate needs selection.refit: true, since every turn's model lacks a group, got false"
            )

    @property
    def method_names(self) -> list[str]:
        return [m if isinstance(m, str) else m.name for m in self.methods]

    def catalogue(self) -> dict[str, Method]:
        """The study's methods by name."""
        return {m if isinstance(m, str) else m.name: method(m) if isinstance(m, str) else m for m in self.methods}

    def encoders(self) -> tuple[EncoderSpec, EncoderSpec]:
        """The encoder, and that of methods which need patch tokens, each with where its weights start."""
        vit = "none" if self.init == "torchvision" else self.init
        return EncoderSpec(self.encoder, self.init), EncoderSpec(self.vit_encoder, vit)

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
        return Space({name: m.config for name, m in catalogue.items()}, overrides, images)

    def scoring(self) -> Protocol:
        """The protocol, with its settings. Raises StudyError on an unknown name or setting."""
        few_shot = self.task == "few_shot"
        raw = self.protocol if self.protocol is not None else "few_shot" if few_shot else "predict"
        name, settings = (raw, {}) if isinstance(raw, str) else _single(raw)
        if name == "few_shot" and few_shot:
            task = self.few_shot
            shape = {"ways": task.ways, "shots": task.shots, "queries": task.queries, "episodes": task.episodes}
            settings = {**shape, "within_group": task.within_group, **settings}
        return protocol(name, **settings)

    def check_objective(self) -> None:
        """Raises StudyError where the search would maximise an error, or where the objective stayed behind in a script.

        Not part of the study's own checks: a run folder holds no objective, and its study must still be read from there.
        """
        if self.objective == IN_PYTHON:
            raise StudyError(
                "this study's objective is a function that its run folder cannot hold; go on with it from the script that has"
                " it, by resume(DIR, study=study)"
            )
        scoring = self.scoring()
        if not scoring.maximise and self.objective is None:
            raise StudyError(
                f"protocol {scoring.name} gives an error, which the search would maximise; give another protocol or, in Python,"
                " an objective such as lambda score: -score.value"
            )

    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are scored, ascending; the last is ``epochs``."""
        if self.reduction == 1:
            return (self.epochs,)
        rungs = [self.epochs]
        while rungs[-1] / self.reduction >= 1:
            rungs.append(round(rungs[-1] / self.reduction))
        return tuple(sorted(set(rungs)))

    def resolved(self) -> dict[str, Any]:
        """The study with every default written out, as plain values for YAML."""
        dump = self.model_dump()
        dump["objective"] = None if self.objective is None else IN_PYTHON
        dump["methods"] = self.method_names
        dump["search"] = {key: _plain_override(value) for key, value in self.search.items()}
        if any(isinstance(v, np.ndarray) for v in (self.data if isinstance(self.data, tuple) else ())):
            dump["data"] = "(arrays given in Python)"
        return _plain(dump)


def load_study(path: str | Path, settings: Sequence[str] = ()) -> Study:
    """Reads a study file, or a preset by name, and applies ``key=value`` settings (dots reach into mappings).

    Raises:
        StudyError: unreadable, unparsable or not a mapping; YAML tags are refused, so no file can run code.
    """
    file = find_study(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} cannot be read: {error}") from None
    return parse_study(text, str(file), file.stem, settings)


def parse_study(text: str, file: str, name: str, settings: Sequence[str] = ()) -> Study:
    """The study in a YAML text, as ``load_study``.

    Args:
        file: what errors call the text.
        name: of the study where the text gives none.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"{file} must be plain YAML, but {_yaml_problem(error)}") from None
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{file} must be plain YAML, but a value in it cannot be: {error}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"{file} must hold a mapping of study fields such as 'data: digits', got {type(raw).__name__}")
    for setting in settings:
        _apply(raw, setting)
    raw.setdefault("name", name)
    for key in raw:
        if not isinstance(key, str):
            raise StudyError(f"{file}: a study's fields are words, got {key!r}")
    return Study(**raw)


PRESETS = Path(__file__).resolve().parents[2] / "search_spaces" / "presets"


def find_study(path: str | Path) -> Path:
    """The study file, or the preset of that name."""
    file = Path(path)
    if file.is_file():
        return file
    preset = PRESETS / f"{path}.yaml"
    if preset.is_file():
        return preset
    known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    raise StudyError(f"there is no study file {path}; give a YAML file or one of the ready-made studies: {known}")


def _apply(raw: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise StudyError(f"--set takes key=value, got {setting!r}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise StudyError(f"--set {key} needs a plain YAML value, got {text!r}") from None
    head, _, rest = key.partition(".")
    if rest and isinstance(raw.get(head), dict | None):
        raw[head] = {**(raw.get(head) or {}), rest: value}
    else:
        raw[key] = value


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem as a sentence: where, rule, value, remedy."""
    first = error.errors()[0]
    if not first["loc"]:
        # Raised by the study's own rules, which are sentences already.
        return " ".join(first["msg"].removeprefix("Value error, ").split())
    where = ".".join(str(part) for part in first["loc"] if not _branch(str(part)))
    if first["type"] == "extra_forbidden":
        owner: type[BaseModel] = model
        for part in first["loc"][:-1]:
            # A part that is no field is a key of a mapping of models.
            if str(part) in owner.model_fields:
                inner = owner.model_fields[str(part)].annotation
                kinds = (inner, *get_args(inner))
                owner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), owner)
        return f"{where} is not a field of a study{nearest(str(first['loc'][-1]), owner.model_fields)}"
    if first["type"] == "missing":
        return f"a study needs the field '{where}', for example {where}: digits"
    rules = [e["msg"].removeprefix("Value error, ") for e in error.errors() if e["loc"][0] == first["loc"][0]]
    rule = " or ".join(dict.fromkeys(r[0].lower() + r[1:] for r in rules))
    given = first["input"]
    return f"{where}: {rule}, got {reprlib.repr(given) if isinstance(given, np.ndarray) else repr(given)}"


def _branch(part: str) -> bool:
    """Whether a part of pydantic's location names the branch of a union, and no field."""
    return part in ("str", "int", "[key]") or part.startswith(("literal", "function", "is-", "dict[", "mapping[", "tuple["))


def _single(raw: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if len(raw) != 1:
        raise StudyError(f"protocol must be a name or one name with its settings, got {dict(raw)!r}")
    ((name, settings),) = raw.items()
    if not isinstance(settings, Mapping | None):
        raise StudyError(f"protocol {name} takes settings as a mapping, got {settings!r}")
    return str(name), dict(settings or {})


def _plain_override(value: Any) -> Any:
    if not hasattr(value, "scale"):
        return value
    if hasattr(value, "options"):
        return {"choices": list(value.options)}
    # Every switch is written, since a range without any is searched on its knob's own scale.
    switches = {s: getattr(value, s) for s in ("log", "log1m", "power_of_two") if hasattr(value, s)}
    return {"low": value.low, "high": value.high, **switches}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
