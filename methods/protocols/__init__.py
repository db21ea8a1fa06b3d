"""How trained methods are scored. ``PROTOCOLS`` lists every way by name; ``protocol`` builds one from its settings."""

from __future__ import annotations

import dataclasses

from pydantic import TypeAdapter, ValidationError

from methods.protocols.contract import (
    Difference,
    Protocol,
    Score,
    Trained,
    embed,
    folds,
    logits_of,
    paired_difference,
    wilson,
)
from methods.protocols.few_shot import FewShot
from methods.protocols.fine_tune import Efficient, FineTune
from methods.protocols.other_data import Ood, Transfer
from methods.protocols.predict import Predict
from methods.protocols.probes import Knn, Linear
from methods.protocols.reliability import Calibration, NamesClasses, Retrieval, ZeroShot
from methods.protocols.robustness import Robustness
from search_spaces.domains import UserError, nearest

__all__ = [
    "PROTOCOLS",
    "Calibration",
    "Difference",
    "Efficient",
    "FewShot",
    "FineTune",
    "Knn",
    "Linear",
    "NamesClasses",
    "Ood",
    "Predict",
    "Protocol",
    "Retrieval",
    "Robustness",
    "Score",
    "Trained",
    "Transfer",
    "ZeroShot",
    "embed",
    "folds",
    "logits_of",
    "paired_difference",
    "protocol",
    "wilson",
]

PROTOCOLS: dict[str, type[Protocol]] = {
    "predict": Predict,
    "knn": Knn,
    "linear": Linear,
    "fine_tune": FineTune,
    "efficient": Efficient,
    "few_shot": FewShot,
    "transfer": Transfer,
    "zero_shot": ZeroShot,
    "robustness": Robustness,
    "calibration": Calibration,
    "ood": Ood,
    "retrieval": Retrieval,
}


def protocol(name: str, **settings: object) -> Protocol:
    """The protocol of that name with these settings; the others keep their defaults.

    Raises:
        UserError: an unknown protocol or setting (the nearest name is offered), or a value of the wrong type or range.
    """
    if name not in PROTOCOLS:
        raise UserError(f"{name} is not a protocol{nearest(name, PROTOCOLS)}")
    kind = PROTOCOLS[name]
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            hint = nearest(key, known) if known else f"; {name} has no settings"
            raise UserError(f"{name}.{key} is not a setting{hint}")
    try:
        made = TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        if isinstance(first.get("ctx", {}).get("error"), UserError):
            raise UserError(str(first["ctx"]["error"])) from None
        raise UserError(f"{where}: {first['msg'].lower()}, got {first['input']!r}") from None
    return made
