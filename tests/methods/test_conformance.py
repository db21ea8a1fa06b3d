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
from methods.contracts import SharedConfig
from methods.testing import CHECKS, Case, case_of
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
    "clip, class names": case_of(CATALOGUE["clip"], captions=False),
}
"""Every method at its defaults, and forms whose stages, states or losses are others."""

names = pytest.mark.parametrize("name", CATALOGUE)
forms = pytest.mark.parametrize("form", CASES)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@forms  # All checks of a form come one after another, and share what it trained.
def test_every_method_conforms(form: str, check: Callable[[Case], None]) -> None:
    check(CASES[form])


@names
def test_file_says_what_it_departs_from(name: str) -> None:
    assert CATALOGUE[name].name == name
    assert issubclass(CATALOGUE[name].config, SharedConfig)
    module = inspect.getmodule(CATALOGUE[name].config)
    assert module is not None
    assert module.METHOD is CATALOGUE[name]
    assert module.__doc__
    assert "eviation" in module.__doc__
    assert len(inspect.getsource(module).splitlines()) <= 260


# Two workers


def two_steps(form: str, world: World) -> list[dict[str, Any]]:
    """For each stage: the loss and averaged gradients of a first step, the state after it, and the loss of a second."""
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
        step = training.step_at(0, 0.0)
        torch.manual_seed(seed_of("layers", 0))
        loss = learner.loss(step)
        loss.total.backward()
        world.average_gradients(training.optimisation.parameters)
        grads = {k: p.grad.clone() for k, p in parameters.items() if p.grad is not None}
        training.optimisation.step(0.0, world)
        with torch.no_grad():
            learner.after_step(step)
        training.steps_done = 1
        state = {k: v.clone() for k, v in learner.state_dict().items()}
        second = training.one_step()["loss"]
        out.append(
            {
                "loss": float(world.mean(loss.total.detach())),
                "grads": grads,
                "state": state,
                "second": float(world.mean(second)),
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
        """What each worker got from ``two_steps``. After a failure the processes are started anew."""
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


@forms
def test_two_workers_equal_one_at_the_same_global_batch(form: str, workers: _Workers) -> None:
    """Tolerances: summing float32 in another order was seen to move losses by 1e-7 and gradients by 1e-6 of themselves, or 1e-3

    where an activation at zero changes sides; a statistic taken over half the batch moves losses by percents. After an AdamW
    step a parameter without a true gradient (a bias before batch normalisation) may differ by twice the learning rate, since
    AdamW turns rounding noise into full steps.
    """
    one = two_steps(form, World())
    for rank, other in enumerate(workers.run(form)):
        for stage, (a, b) in enumerate(zip(one, other, strict=True)):
            where = f"stage {stage}, rank {rank}"
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5, abs=1e-6), where
            assert b["second"] == pytest.approx(a["second"], rel=1e-3, abs=1e-5), where
            total = sum(float(g.square().sum()) for g in a["grads"].values()) ** 0.5
            for k, g in a["grads"].items():
                assert float((g - b["grads"][k]).norm()) <= 5e-3 * (total + 1e-6), f"{where}: gradient of {k}"
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
            result = two_steps(job["form"], World(rank, 2))
            torch.save(result, job["file"])
            answers.write("done\n")
        except Exception:
            answers.write(json.dumps(traceback.format_exc()) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
