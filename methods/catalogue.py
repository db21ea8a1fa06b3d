"""The catalogue: every method, listed by hand. A method that is not listed here does not exist."""

from __future__ import annotations

from methods.baselines import supervised
from methods.contracts import Method
from methods.fewshot import maml, prototypical
from methods.selfsup import mae, moco, rotation, simclr
from methods.semisup import fixmatch, mean_teacher, noisy_student
from search_spaces.domains import UserError, nearest

_MODULES = (supervised, rotation, simclr, moco, mae, mean_teacher, fixmatch, noisy_student, prototypical, maml)

CATALOGUE: dict[str, Method] = {module.METHOD.name: module.METHOD for module in _MODULES}


def method(name: str) -> Method:
    """The catalogue's entry. Raises UserError with the nearest name where there is none."""
    if name not in CATALOGUE:
        raise UserError(f"methods: {name} is not a method of the catalogue{nearest(name, CATALOGUE)}")
    return CATALOGUE[name]
