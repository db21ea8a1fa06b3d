"""The fields of a study's health limits: when a trial ends early because its training is ill."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, JsonValue, model_validator

from methods.health import SIGNALS
from orchestrator.study.fields import Strict, StudyError
from search_spaces.domains import nearest


class Limit(Strict):
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


COLLAPSE = {"embedding_sd": Limit(below=0.05), "projection_sd": Limit(below=0.05)}
"""The limits of a study that names none: plain collapse only, where the mean cosine of two images exceeds .997.

A wrong stop costs more than a wasted trial, which the rungs end too. After an epoch of 2,048 images of CIFAR-10 the catalogue
lay at .21 and more; after two epochs of 512 digits at the lowest searched learning rate, still nearly untrained, at .09 and
more; BYOL without its predictor at .07, which a study that wants it stopped must ask for.
"""


class HealthFields(Strict):
    """When a trial ends early because its training is ill.

    Attributes:
        stop: health signal -> the limit beyond which a trial of the search ends early, see ``methods.health``. It ends as
            pruned, keeps its scores, and its reason says so; a method's defaults train to the end all the same, so that
            every method is seen at full length. Nothing counts before the method's ``min_epochs``, nor in the first steps
            of a stage. By default only plain collapse stops a trial, since its later epochs would be wasted; {} stops none.
    """

    stop: Mapping[str, Limit] = Field(
        default_factory=lambda: dict(COLLAPSE), json_schema_extra={"propertyNames": {"enum": list[JsonValue](sorted(SIGNALS))}}
    )

    def check_stop(self) -> None:
        """Raises StudyError on an unknown health signal."""
        unknown = next((name for name in self.stop if name not in SIGNALS), None)
        if unknown is not None:
            raise StudyError(f"stop.{unknown} is not a health signal{nearest(unknown, SIGNALS)}")
