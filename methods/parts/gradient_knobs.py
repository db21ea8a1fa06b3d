"""Knobs that the gradient-based few-shot methods have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

from methods.contracts import Optimizer
from methods.parts.adaptation import HEADS
from methods.parts.episodes import EpisodicConfig
from search_spaces.domains import SWITCH, Choice, Float, Int, knob


@dataclass(frozen=True)
class InnerConfig(EpisodicConfig):
    """Episodes of few ways, and gradient steps on a support set."""

    weight_decay: float = knob(
        0.0, Float(0.0, 0.05), legal=Float(0, 10), doc="decoupled weight decay of the meta-optimizer", source="Finn 2017: none"
    )
    ways: int = knob(
        5, Int(5, 20), legal=Int(2, 1000), unit="classes", source="Finn 2017",
        doc="classes of a training episode; at most as many as the data offers are taken",
    )  # fmt: skip
    tasks: int = knob(
        4, Int(2, 16), legal=Int(1, 1024), unit="tasks", doc="tasks of a meta-batch, all workers together", source="Finn 2017"
    )
    steps: int = knob(
        3, Int(1, 10), legal=Int(1, 100), unit="steps", doc="gradient steps on a support set", source="Finn 2017: 1"
    )
    first_order: bool = knob(False, SWITCH, doc="drop second derivatives (FOMAML)", source="Finn 2017")
    head: str = knob("zero", Choice(HEADS), doc="where a task's linear head starts", source="Kao 2021; Finn 2017: learned")

    def adamw(self) -> Optimizer:
        """The meta-optimizer. A rare task can have a huge meta-gradient, hence the clipping."""
        return replace(super().adamw(), clip=10.0)
