"""What every entry of the catalogue owes: the checks of ``methods.testing``, and any number of workers.

Run as a script this file is one of the two workers that train every method at half the batch each (see ``_Workers``).
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.batch import seed_of
from methods.catalogue import CATALOGUE
from methods.contracts import FeatureConfig, SharedConfig
from methods.testing import Case, case_of, checks_of
from methods.world import World

CASES: dict[str, Case] = {
    **{name: case_of(method) for name, method in CATALOGUE.items()},
    "noisy_student, wide": case_of(CATALOGUE["noisy_student"], {"generations": 2, "student_width": 1.5}),
    "pseudo_label, staged": case_of(CATALOGUE["pseudo_label"], {"staged": True}),
    "s4l, exemplar": case_of(CATALOGUE["s4l"], {"auxiliary": "exemplar"}),
    "s4l, full mix": case_of(CATALOGUE["s4l"], {"full_mix": True}),
    "prototypical, framed": case_of(CATALOGUE["prototypical"], {"framed": True, "test_views": 3}),
    "prototypical, exchange": case_of(CATALOGUE["prototypical"], {"exchange": True}),
    "maml, framed": case_of(CATALOGUE["maml"], {"framed": True}),
    "linear_probe, alone": case_of(
        CATALOGUE["linear_probe"], {"views": "one", "standardise": "standardise", "intercept": True, "balance": False}
    ),
    "linear_probe, augmented": case_of(CATALOGUE["linear_probe"], {"views": "augmented", "standardise": "none"}),
    "prototype_classifier, euclidean": case_of(CATALOGUE["prototype_classifier"], {"distance": "euclidean"}),
    "prototype_classifier, centred": case_of(
        CATALOGUE["prototype_classifier"], {"distance": "euclidean", "standardise": "centre"}
    ),
    "label_propagation, rounds": case_of(CATALOGUE["label_propagation"], {"rounds": 3}),
    "fine_tune, statistics": case_of(CATALOGUE["fine_tune"], {"batch_norm": "trained", "views": "one"}),
    "lora, statistics": case_of(CATALOGUE["lora"], {"batch_norm": "trained"}),
    "continued_pretraining, byol": case_of(CATALOGUE["continued_pretraining"], {"objective": "byol"}),
    "distill, two": case_of(CATALOGUE["distill"], {"teachers": 2}),
    "clip, class names": case_of(CATALOGUE["clip"], captions=False),
}
"""Every method at its defaults, and forms whose stages, states or losses are others."""

names = pytest.mark.parametrize("name", CATALOGUE)
forms = pytest.mark.parametrize("form", [form for form, case in CASES.items() if not case.method.on_features])


# All checks of a form come one after another, and share what it trained.
@pytest.mark.parametrize(
    ("form", "check"),
    [pytest.param(f, check, id=f"{f}-{check.__name__}") for f, case in CASES.items() for check in checks_of(case.method)],
)
def test_every_method_conforms(form: str, check: Callable[[Case], None]) -> None:
    check(CASES[form])


@names
def test_file_says_what_it_departs_from(name: str) -> None:
    assert CATALOGUE[name].name == name
    assert issubclass(CATALOGUE[name].config, FeatureConfig if CATALOGUE[name].on_features else SharedConfig)
    module = inspect.getmodule(CATALOGUE[name].config)
    assert module is not None
    assert module.METHOD is CATALOGUE[name]
    assert module.__doc__
    assert "eviation" in module.__doc__
    assert len(inspect.getsource(module).splitlines()) <= 260


# Two workers


def steps_of(form: str, world: World) -> list[dict[str, Any]]:
    """For each stage: the losses and averaged gradients of two batches at its first weights, the state after a step along the
    second, and the loss of a next step."""
    training = CASES[form].start(world=world)
    out: list[dict[str, Any]] = []
    initial: dict[str, Tensor] = {}
    for stage in range(len(training.stages)):
        if stage:
            # From the seeded weights, alike in every world: two steps of AdamW turn rounding noise into full steps, which a
            # stage that starts with discrete choices (a vocabulary, confident answers) would amplify.
            training.learner.load_state_dict(initial)
            training.enter(stage)
        initial = {k: v.clone() for k, v in training.learner.state_dict().items()}
        learner, parameters = training.learner, dict(training.learner.named_parameters())
        losses, grads = [], []
        for number in range(2):
            training.optimisation.optimizer.zero_grad()
            step = training.step_at(number, 0.0)
            torch.manual_seed(seed_of("layers", number))
            loss = learner.loss(step)
            loss.total.backward()
            world.average_gradients(training.optimisation.parameters)
            losses.append(float(world.mean(loss.total.detach())))
            grads.append({k: p.grad.clone() for k, p in parameters.items() if p.grad is not None})
        training.optimisation.step(0.0, world)
        with torch.no_grad():
            learner.after_step(step)
        training.steps_done = 2
        state = {k: v.clone() for k, v in learner.state_dict().items()}
        out.append(
            {
                "losses": losses,
                "grads": grads,
                "state": state,
                "next": float(world.mean(training.one_step()["loss"])),
                "rate": training.optimisation.spec.lr,
            }
        )
    return out


class _Workers:
    """Two processes in one gloo group, started once, that take one method after another."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        store = Path(self.folder.name) / f"store{len(list(Path(self.folder.name).iterdir()))}"
        for rank in (0, 1):
            command = [sys.executable, __file__, str(rank), str(store)]
            self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def run(self, form: str) -> list[list[dict[str, Any]]]:
        """What each worker got from ``steps_of``. After a failure the processes are started anew."""
        if not self.processes:
            self.start()
        files = [Path(self.folder.name) / f"{form}.{rank}.pt" for rank in (0, 1)]
        for process, file in zip(self.processes, files, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"form": form, "file": str(file)}) + "\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in self.processes if process.stdout is not None]
        if not all(file.exists() for file in files):
            self.stop()
            raise AssertionError("a worker failed: " + "\n".join(answers))
        return [torch.load(file, weights_only=True) for file in files]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes = []


@pytest.fixture(scope="session")
def workers() -> Iterator[_Workers]:
    group = _Workers()
    yield group
    group.stop()
    group.folder.cleanup()


def gradient_error(one: list[dict[str, Tensor]], two: list[dict[str, Tensor]], parameter: str) -> float:
    """How far two workers' gradient is from one's, as a share of the whole gradient's norm: the smaller of two batches'."""
    errors = []
    for a, b in zip(one, two, strict=True):
        total = sum(float(g.square().sum()) for g in a.values()) ** 0.5
        errors.append(float((a[parameter] - b[parameter]).norm()) / (total + 1e-6))
    return min(errors)


@forms
def test_two_workers_equal_one_at_the_same_global_batch(form: str, workers: _Workers) -> None:
    """Tolerances: summing float32 in another order was seen to move losses by 1e-7 and gradients by 1e-6 of themselves; a
    statistic taken over half the batch moves losses by percents. Where an activation lies within rounding of zero it may change
    sides, which moves a batch's gradient by 1e-3, rarely by a percent: the smaller error of two batches counts. After an AdamW
    step a parameter without a true gradient (a bias before batch normalisation) may differ by twice the learning rate, since
    AdamW turns rounding noise into full steps.
    """
    one = steps_of(form, World())
    for rank, other in enumerate(workers.run(form)):
        for stage, (a, b) in enumerate(zip(one, other, strict=True)):
            where = f"stage {stage}, rank {rank}"
            assert b["losses"] == pytest.approx(a["losses"], rel=1e-5, abs=1e-6), where
            assert b["next"] == pytest.approx(a["next"], rel=1e-3, abs=1e-5), where
            for k in a["grads"][0]:
                assert gradient_error(a["grads"], b["grads"], k) <= 5e-3, f"{where}: gradient of {k}"
            for k, value in a["state"].items():
                difference = float((value.double() - b["state"][k].double()).abs().max()) if value.numel() else 0.0
                allowed = 1e-4 * float(value.double().abs().max()) + 2.5 * a["rate"] + 1e-5 if value.numel() else 0.0
                assert difference <= allowed, f"{where}: {k} differs by {difference}"


def _serve(rank: int, store: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=30))
    answers = sys.stdout
    sys.stdout = sys.stderr  # learn2learn's notices must not be taken for answers
    for line in sys.stdin:
        job = json.loads(line)
        try:
            result = steps_of(job["form"], World(rank, 2))
            torch.save(result, job["file"])
            answers.write("done\n")
        except Exception:
            answers.write(json.dumps(traceback.format_exc()) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
