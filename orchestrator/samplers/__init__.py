"""Which knobs a method's next trial gets, one sampler a file. ``SAMPLERS`` lists them by the name that study files use."""

from orchestrator.samplers.contract import Draw, Sampler
from orchestrator.samplers.own import OwnOptuna
from orchestrator.samplers.quasi_random import QuasiRandom
from orchestrator.samplers.random import Random
from orchestrator.samplers.tpe import Tpe

__all__ = ["SAMPLERS", "Draw", "OwnOptuna", "QuasiRandom", "Random", "Sampler", "Tpe"]

SAMPLERS: dict[str, type[Tpe | Random | QuasiRandom]] = {"tpe": Tpe, "random": Random, "quasi_random": QuasiRandom}
