"""The fields of where a study runs, what it is called and where it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from orchestrator.study.fields import Strict, one_or_more


class MachineFields(Strict):
    """Where the study runs, what it is called and where it is kept.

    Attributes:
        seed: of everything random in the study.
        workers: workers that train one trial together.
        slots: trials at a time; None for what the machine or cluster carries.
        address: of a running Ray cluster; None for this machine.
        precision: ``auto``, ``fp32`` or ``bf16``.
        out: the run folder; None for ``runs/<study name>``.
        name: for people and for the default run folder.
        earlier: run folders of earlier studies whose trials seed this one's search.
    """

    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=1)
    slots: int | None = Field(None, ge=1)
    address: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    out: str | None = None
    name: str = "study"
    earlier: tuple[str, ...] = ()

    _several_earlier = field_validator("earlier", mode="before")(one_or_more)
