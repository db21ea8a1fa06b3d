"""From a study to all that is fixed before any process starts: its data divided, its space, and what decides its course."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch

from cluster.machine import Node
from cluster.plan import ResourcePlan, plan_resources
from cluster.storage import Storage
from methods.contracts import Method
from methods.data.episodic import NO_TEST
from methods.data.records import Source, Split
from methods.data.sources import load
from methods.parts.encoders import build_encoder
from methods.parts.modes import threads
from methods.protocols.contract import Protocol
from methods.tasks import Facts, Task
from methods.training.clock import Fidelity
from methods.world import World
from orchestrator.allocation import Joint, JointTpe, TwoLevels
from orchestrator.budgets import BUDGETS, Budget, Epochs, Ledger, Resources, Trials
from orchestrator.choices import allocation_of, sampler_of, strategy_of
from orchestrator.default_study import completed, with_task
from orchestrator.engine.controller import Course
from orchestrator.engine.events import Opened, Proposed
from orchestrator.engine.health import HealthLimits
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.engine.records import SlotSetup, Trial, TrialSpec
from orchestrator.engine.selection import Division, Finals
from orchestrator.engine.trial import training_of
from orchestrator.folder import RunFolder
from orchestrator.outputs.gallery import IMAGES
from orchestrator.strategies import Problem
from orchestrator.study import Study, StudyError
from search_spaces.space import Space

PACKAGES = ("torch", "torchvision", "ray", "optuna", "learn2learn", "tensorboard", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {name: version(name) for name in ("labelwise", *PACKAGES)}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


@dataclass(frozen=True)
class Prepared:
    """A study with its data divided.

    Attributes:
        study: as it was given, completed where it names no methods.
        task: what is to be learned and how it is judged.
        protocol: how a trained method is scored.
        methods: by name.
        split: the data, divided by the task.
        space: what is searched.
        division: how the labels may judge finalists.
        began: seconds since 1970 at which its command began.
        earlier: trials of the studies that this one's search learns from first.
        proposed: what completed the study, and why; None where it names its methods.
    """

    study: Study
    task: Task
    protocol: Protocol
    methods: Mapping[str, Method]
    split: Split
    space: Space
    division: Division
    began: float
    earlier: tuple[Trial, ...] = ()
    proposed: Proposed | None = None

    @property
    def top(self) -> Fidelity:
        """The highest rung."""
        return rungs_of(self.study)[-1]

    @property
    def facts(self) -> Facts:
        """What the verdict and the report say of the task and its division."""
        return self.task.facts(self.split)

    @property
    def refits(self) -> frozenset[str]:
        """Names of the methods that are also trained on the whole budget."""
        if not self.study.selection.refit:
            return frozenset()
        return frozenset(name for name, method in self.methods.items() if self.task.refits(self.split, method))

    @property
    def label_free(self) -> frozenset[str]:
        """Names of the methods of whom one training, which reads no label, serves every division of the labels."""
        if not self.task.shares_pool(self.split):
            return frozenset()
        return frozenset(name for name, method in self.methods.items() if not method.reads_labels(self.split.train))

    def setup(self, storage: Storage, plan: ResourcePlan) -> SlotSetup:
        """What the slots share; without the test labels."""
        study = self.study
        encoder, vit_encoder = study.encoders()
        return SlotSetup(
            split=dataclasses.replace(self.split, test=None),
            methods=self.methods,
            encoder=encoder,
            vit_encoder=vit_encoder,
            protocol=self.protocol,
            objective=study.objective,
            top=self.top,
            epoch_images=study.epoch_images,
            precision=study.precision,
            seed=study.seed,
            task=self.task,
            storage=storage,
            threads=plan.threads_per_worker,
            most_parameters=study.limit.parameters,
            most_ms=study.limit.predict_ms,
            encoders=study.compared(self.methods),
            offered=self.space.encoders,
        )

    def course(self, plan: ResourcePlan, trials: int | None) -> Course:
        """What decides the study's course; ``trials`` as the history wants them."""
        in_one_go = on_features(self.methods.values())
        finals = Finals(self.study.selection, self.division, self.refits, self.label_free, self.study.seed, in_one_go)
        return course_of(self.study, self.space, finals, resources_of(plan), trials, self.earlier, self.scorings(plan))

    def scorings(self, plan: ResourcePlan) -> float:
        """Scorings of a search trial that a model's test and pictures cost: of more images, with the whole machine."""
        if self.split.test is None:
            return 0.0
        tests, asked = len(self.split.test), max(len(self.split.validation), 1)
        return (tests + min(tests, IMAGES)) / asked * plan.threads_per_worker / max(plan.total_cpus, 1.0)


def prepare(study: Study, began: float | None = None, weights: bool = True) -> Prepared:
    """Loads and divides the study's data, and tries its starting weights.

    Args:
        study: what to prepare.
        began: seconds since 1970 at which the command began; None where that is this call.
        weights: whether anything is still to be trained.
    Raises:
        UserError: data or weights cannot be read or used, in one line, before anything is left behind.
    """
    began = time.time() if began is None else began
    study.check_objective()
    source = load(study.data, size=study.size, on_bad_image=study.on_bad_image)
    study = with_task(study, source)
    task, protocol = study.task_object(), study.scoring()
    split = task.divide(source, _test_of(study, source), protocol, study.seed)
    study, proposed = completed(study, split)
    if weights:
        _check_weights(study, split)
    past = [History(read_journal(RunFolder.open(place).storage)) for place in study.earlier]
    earlier = tuple(trial for history in past for trial in history.search())
    division, space = _division(study, task, split), study.space(split.fewest_images())
    return Prepared(study, task, protocol, study.catalogue(), split, space, division, began, earlier, proposed)


def _division(study: Study, task: Task, split: Split) -> Division:
    """How the labels may judge finalists. Raises UserError where they cannot be divided as the study wants."""
    given = study.selection.folds
    counts = (given,) if isinstance(given, int) else task.fold_counts(split)
    asked = set(split.validation.index.tolist())
    first = {count: task.folds(split, count, study.seed)[0] for count in counts if count > 1}
    nested = {count for count, fold in first.items() if set(fold.validation.index.tolist()) == asked}
    return Division(counts, frozenset(nested))


def _test_of(study: Study, source: Source) -> float | Source | Literal["none"] | None:
    """Test images of the training images' shape, a share, ``none``, or None for what the task does by itself."""
    if study.test is None or isinstance(study.test, float):
        return study.test
    if study.test == NO_TEST:
        return NO_TEST
    channels, height, width = source.train.images.shape
    return load(study.test, size=(height, width), channels=channels, on_bad_image=study.on_bad_image)


def _check_weights(study: Study, split: Split) -> None:
    """Tries the starting weights on the data, as this machine has them. Raises UserError before every trial finds out."""
    methods = study.catalogue()
    specs = list(study.compared(methods).values())
    if not specs:
        each = zip(("any", "vit"), study.encoders(), strict=True)
        needed = {method.encoder for method in methods.values()}
        specs = [spec for need, spec in each if need in needed and spec.init != "none"]
    for spec in specs:
        with torch.random.fork_rng():
            build_encoder(spec, split.train.images.shape, split.train.mean, split.train.std)


def rungs_of(study: Study) -> tuple[Fidelity, ...]:
    """Fidelities at which trials are scored, ascending."""
    unit: Literal["epochs", "seconds"] = "epochs" if study.seconds is None else "seconds"
    # A strategy with a reduction of its own spaces its rungs by it.
    return tuple(Fidelity(unit, amount) for amount in study.rungs(getattr(strategy_of(study), "reduction", None)))


def on_features(methods: Iterable[Method]) -> frozenset[str]:
    """Names of the methods that are fitted on frozen features."""
    return frozenset(method.name for method in methods if method.on_features)


def budgets_of(study: Study, trials: int | None) -> tuple[Budget, ...]:
    """The study's budgets, with so many trials where it counts them."""
    amounts = {name: amount for name, amount in study.budget.amounts().items() if name != Trials.name}
    counted = () if trials is None else (Trials(trials),)
    return (*counted, *(BUDGETS[name](amount) for name, amount in amounts.items()), *study.budget.objects())


def plan_for(study: Study, nodes: Sequence[Node]) -> ResourcePlan:
    """How the machines are divided among the study's trials."""
    return plan_resources(nodes, workers_per_trial=study.workers, slots=study.slots, trials=study.trials)


def resources_of(plan: ResourcePlan) -> Resources:
    """What trains at a time, as budgets count it."""
    workers = plan.workers_per_trial
    return Resources(plan.slots, float(plan.threads_per_worker * workers), plan.gpus_per_worker * workers)


def proposer_of(study: Study, space: Space) -> Joint | TwoLevels:
    """What suggests the study's configurations."""
    allocation = allocation_of(study)
    if isinstance(allocation, JointTpe):
        return Joint(space, study.seed, allocation.startup)
    return TwoLevels(space, study.seed, allocation, sampler_of(study))


def course_of(
    study: Study,
    space: Space,
    finals: Finals,
    resources: Resources,
    trials: int | None,
    earlier: Iterable[Trial] = (),
    scorings: float = 0.0,
) -> Course:
    """What decides the course of a study, from its settings alone.

    Args:
        space: what is searched.
        finals: what comes after the search.
        resources: what trains at a time.
        trials: that the search starts; None where other budgets end it.
        earlier: trials of other studies, from which this one's sampler learns before its own.
        scorings: of a search trial that the test of a model costs.
    """
    first = {name: method.min_epochs for name, method in study.catalogue().items()}
    budgets = tuple(budget.testing(scorings) for budget in budgets_of(study, trials))
    ledger = Ledger(budgets, resources, finals.trainings_after)
    proposer = proposer_of(study, space)
    proposer.seed_from(earlier)
    in_one_go = on_features(study.catalogue().values())
    problem = Problem(study.seed, space.methods, rungs_of(study), first, proposer, ledger, in_one_go)
    return Course(problem, strategy_of(study), finals, ledger, HealthLimits(study.stop, first))


def check_budgets(prepared: Prepared, setup: SlotSetup, plan: ResourcePlan) -> None:
    """Raises UserError where a budget does not even bear one training of each method's defaults, with what was measured."""
    top, resources = prepared.top, resources_of(plan)
    budgets = budgets_of(prepared.study, prepared.study.trials)
    for budget in budgets:
        budget.check(resources, top)
    # What is counted is known beforehand; seconds are measured, where a budget counts them.
    known = top.unit == "seconds" or not any(budget.timed for budget in budgets)
    frozen = on_features(prepared.methods.values())
    seconds = _known_seconds(prepared) if known else full_seconds(prepared, setup)
    if len(frozen) == len(prepared.methods) and all(isinstance(budget, Epochs) for budget in budgets):
        raise StudyError(
            f"budget.epochs never ends where no method trains an epoch ({', '.join(sorted(frozen))}); give trials or minutes"
        )
    epochs = {name: top.amount if top.unit == "epochs" and name not in frozen else 0 for name in seconds}
    defaults = [Trial(TrialSpec(name, 0, name, {}, 0), epochs=epochs[name], seconds=each) for name, each in seconds.items()]
    begun = History([Opened(prepared.began, time=time.time())])
    for budget in budgets:
        need = sum(budget.cost(trial, 1.0, resources) for trial in defaults)
        beside = budget.spent(begun, resources) + budget.closing(begun)
        if need + beside > budget.amount:
            how = " (measured here from a few steps each)" if budget.timed and not known else ""
            also = f" beside {beside:.2g} for the study's beginning and end" if beside else ""
            raise StudyError(
                f"budget.{budget.name} must bear one training of each method's defaults, which take {need:.3g}{how}{also}, got"
                f" {budget.amount:g}; raise it, lower the top rung or name fewer methods"
            )


def full_seconds(prepared: Prepared, setup: SlotSetup, encoder: str | None = None) -> dict[str, float]:
    """Seconds that a full training of each method's defaults takes in one slot, measured here from a few steps each.

    Args:
        encoder: the label of an encoder, for the methods that may be tried with it; None for each method's first.
    """
    folds, workers = len(prepared.task.divisions(prepared.split)), prepared.study.workers
    names = prepared.space.methods_with(encoder)
    if setup.top.unit == "seconds":
        fits = seconds_per_epoch(setup, prepared.space, on_features(prepared.methods.values()) & set(names), encoder)
        return {name: fits.get(name, setup.top.amount) * folds for name in names}
    each = seconds_per_epoch(setup, prepared.space, names, encoder)
    return {name: seconds * setup.top.amount * folds / workers for name, seconds in each.items()}


def _known_seconds(prepared: Prepared) -> dict[str, float]:
    """Seconds of a full training as far as the study's fields tell: those of the highest rung; 0 of fits, and of epochs."""
    amount = prepared.top.amount if prepared.top.unit == "seconds" else 0.0
    folds, frozen = len(prepared.task.divisions(prepared.split)), on_features(prepared.methods.values())
    return {name: 0.0 if name in frozen else amount * folds for name in prepared.methods}


def seconds_per_epoch(setup: SlotSetup, space: Space, names: Iterable[str], encoder: str | None = None) -> dict[str, float]:
    """Seconds that an epoch of each method's defaults takes, measured on this machine from a few steps each; by the clock,
    those of a whole fit on features.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    with threads(setup.threads):
        for name in names:
            first = space.defaults(name, encoder)
            spec = TrialSpec(name, 0, name, first.values, setup.seed, encoder=first.encoder)
            found[name] = training_of(setup, spec, World(device=device)).seconds_per_epoch()
    return found
