"""What every entry of the catalogue owes: legal knobs, exact repetition, honest use of labels, any number of workers.

Run as a script this file is one of the two workers that train every method at half the batch each (see ``_Workers``).
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.batch import Episodes, EpisodeShape, RandomStream, seed_of
from methods.catalogue import CATALOGUE
from methods.contracts import EpisodicLearner, Method, MetricLearner, SharedConfig
from methods.data.records import ArrayImages, TrainData
from methods.parts.encoders import Encoder, EncoderSpec
from methods.training import Precision, Training, TrainSettings
from methods.world import World
from search_spaces.domains import Choice, build, check_inside, knobs

CLASSES, EACH, SHOWN, SIDE = 4, 16, 8, 16

TINY: dict[str, object] = {
    "batch_size": 16, "mu": 1, "tasks": 2, "ways": 3, "shots": 1, "queries": 2, "queue": 32, "negatives": 8, "generations": 1,
}  # fmt: skip
"""Values that make a method fit 64 images, for whichever of these knobs it has."""

VARIANTS: dict[str, dict[str, object]] = {
    "noisy_student, wide": {"generations": 2, "student_width": 1.5},
    "pseudo_label, staged": {"staged": True},
    "s4l, exemplar": {"auxiliary": "exemplar"},
    "s4l, full mix": {"full_mix": True},
    "prototypical, framed": {"framed": True, "test_views": 3},
    "prototypical, exchange": {"exchange": True},
    "maml, framed": {"framed": True},
}
"""Forms of a method whose stages, states or losses are others than those of its defaults."""

names = pytest.mark.parametrize("name", CATALOGUE)
forms = pytest.mark.parametrize("name", [*CATALOGUE, *VARIANTS])


def tiny_data(labels: bool = True, channels: int = 3) -> TrainData:
    """64 images of 4 classes, half of each class labelled, with groups and captions."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(CLASSES), EACH)
    pattern = rng.uniform(60, 195, (CLASSES, SIDE, SIDE, channels))
    pixels = (pattern[truth] + rng.normal(0, 30, (len(truth), SIDE, SIDE, channels))).clip(0, 255).astype(np.uint8)
    shown = np.tile(np.arange(EACH) < SHOWN, CLASSES)
    label = np.where(shown & labels, truth, -1).astype(np.int64)
    tokens = np.stack([truth + 1, truth + 5, np.zeros_like(truth)], axis=1)
    statistics = (0.5,) * channels, (0.25,) * channels
    return TrainData(ArrayImages(pixels), label, CLASSES, *statistics, group=truth // 2, tokens=tokens, words=tuple("abcdefgh"))


def method_of(form: str) -> Method:
    return CATALOGUE[form.partition(",")[0]]


def config_of(form: str) -> Any:
    method = method_of(form)
    wanted = {knob: value for knob, value in TINY.items() if knob in method.knobs()}
    return build(method.config, {**wanted, **VARIANTS.get(form, {})})


@cache
def _images_a_step(name: str) -> int:
    return _training(name, 64).learner.batch_spec().images


def _training(
    name: str, epoch_images: int, seed: int = 0, labels: bool = True, world: World | None = None, precision: Precision = "fp32"
) -> Training:
    method = method_of(name)
    encoder = EncoderSpec("vit_tiny" if method.encoder == "vit" else "resnet_small")
    settings = TrainSettings(2, encoder, seed, epoch_images, precision)
    return Training(method, config_of(name), tiny_data(labels), settings, world)


def start(name: str, seed: int = 0, labels: bool = True, world: World | None = None, precision: Precision = "fp32") -> Training:
    """A training of 2 epochs: 2 steps where there is one stage, about 2 a stage where there are several."""
    images = _images_a_step(name) * len(method_of(name).plan(config_of(name)))
    return _training(name, images, seed, labels, world, precision)


@cache
def trained(name: str) -> tuple[list[Mapping[str, float]], Training]:
    """An uninterrupted training: what it reported after each epoch, and the training."""
    training = start(name)
    return [training.train_epoch().parts for _ in range(2)], training


def through_disk(state: Mapping[str, Any]) -> Mapping[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def differences(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not bitwise equal."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name].nan_to_num(), b[name].nan_to_num())]


# The entry


@names
def test_entry_is_complete(name: str) -> None:
    method = CATALOGUE[name]
    assert method.name == name
    assert method.paper
    assert method.summary
    assert not method.summary.endswith(".")
    assert dataclasses.is_dataclass(method.config)
    assert method.config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert issubclass(method.config, SharedConfig)
    stages = method.plan(config_of(name))
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    assert len({stage.name for stage in stages}) == len(stages)


@names
def test_file_says_what_it_departs_from(name: str) -> None:
    module = inspect.getmodule(CATALOGUE[name].config)
    assert module is not None
    assert module.METHOD is CATALOGUE[name]
    assert module.__doc__
    assert "eviation" in module.__doc__
    assert len(inspect.getsource(module).splitlines()) <= 260


@names
def test_knobs_are_legal_and_documented(name: str) -> None:
    config = CATALOGUE[name].config
    declared = knobs(config)
    assert build(config, {}) == build(config, {k: v.default for k, v in declared.items() if not v.variants})
    for knob in declared.values():
        assert knob.doc, knob.name
        assert knob.source, knob.name
        assert not knob.doc.endswith("."), knob.name
        assert knob.legal.contains(knob.default), knob.name
        ranges = [(knob.default, knob.search), *((v.default, v.search) for v in knob.variants)]
        for default, search in ranges:
            if search is not None:
                check_inside(search, knob.legal, knob.name)
                assert search.contains(default), f"the default of {knob.name}, {default}, lies outside its search range"
                ends = search.options if isinstance(search, Choice) else (search.low, search.high)
                for value in ends:
                    knob.check(value, knob.name)


@names
def test_method_and_config_pickle(name: str) -> None:
    method, config = CATALOGUE[name], config_of(name)
    assert pickle.loads(pickle.dumps(method)) == method  # noqa: S301
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


# One training


@forms
def test_losses_are_finite_and_their_parts_detached_scalars(name: str) -> None:
    training = start(name)
    step = training.step_at(0, 0.0)
    loss = training.learner.loss(step)
    assert loss.total.shape == ()
    assert loss.total.requires_grad
    assert torch.isfinite(loss.total)
    for part, value in loss.parts.items():
        assert value.shape == (), part
        assert not value.requires_grad, part
        assert torch.isfinite(value), part
    reports, _ = trained(name)
    assert all(np.isfinite(report["loss"]) for report in reports)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@forms
def test_gradient_reaches_the_encoder(name: str, precision: Precision) -> None:
    """In bf16 too, where a pass without gradient must not leave its casts of the weights to one with."""
    training = start(name, precision=precision)
    encoder = training.learner.encoder()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with training.autocast():
        training.learner.loss(training.step_at(0, 0.0)).total.backward()
    reached = [(p.grad is not None and bool(p.grad.abs().sum() > 0)) for p in encoder.parameters() if p.requires_grad]
    if reached:
        assert np.mean(reached) >= 0.8
        return
    # The scored encoder is a teacher: it must follow the student.
    training.optimisation.optimizer.zero_grad()
    training.train_epoch()
    after = training.learner.encoder().state_dict()
    assert len(differences(before, after)) > len(before) // 2
    assert any(before[k].dim() > 1 for k in differences(before, after)), "weights, and not statistics alone"


@forms
def test_same_seed_same_loss_bitwise_and_another_seed_differs(name: str) -> None:
    reports, first = trained(name)
    torch.manual_seed(123)  # Whatever the process did before must not matter.
    again = start(name)
    assert [again.train_epoch().parts for _ in range(2)] == reports
    assert differences(first.learner.state_dict(), again.learner.state_dict()) == []
    assert start(name, seed=1).train_epoch().parts["loss"] != reports[0]["loss"]


@forms
def test_stop_and_resume_equals_uninterrupted_bitwise(name: str) -> None:
    """Resumed in a learner whose every saved tensor was spoilt, so that the state is seen to be the whole of it."""
    reports, whole = trained(name)
    before = start(name)
    before.train_epoch()
    state = through_disk(before.state())
    after = start(name)
    while after.stage_number < state["stage"]:
        after.enter(after.stage_number + 1)
    for value in after.learner.state_dict().values():
        value.fill_(1)
    after.load(state)
    assert after.train_epoch().parts == reports[1]
    assert differences(whole.learner.state_dict(), after.learner.state_dict()) == []


@names
def test_methods_without_labels_never_read_them(name: str) -> None:
    method = CATALOGUE[name]
    if method.reads_labels(tiny_data()):
        batch_spec = start(name).learner.batch_spec()
        assert batch_spec.labelled or batch_spec.episodes or len(method.plan(config_of(name))) > 1, (
            "it declares labels but asks for none"
        )
        return
    reports, _ = trained(name)
    hidden = start(name, labels=False)
    assert [hidden.train_epoch().parts for _ in range(2)] == reports


@pytest.mark.parametrize("epochs", [1, 2])
@forms
def test_encoder_and_predictor_answer_for_each_image_by_itself(name: str, epochs: int) -> None:
    """After half of the training too, in whatever stage it is: trials are stopped there."""
    if epochs == 2:
        _, training = trained(name)
    else:
        training = start(name)
        training.train_epoch()
    learner = training.learner
    images = tiny_data().images.take(torch.arange(0, 64, 4))
    learner.eval()
    try:
        encoder, predictor = learner.encoder(), learner.predictor()
        assert isinstance(encoder, Encoder)
        with torch.no_grad():
            z = encoder(images)
            assert z.shape == (16, encoder.dim)
            torch.testing.assert_close(encoder(images[:3]), z[:3], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(encoder(images.float() / 255), z, rtol=1e-3, atol=1e-4)
            if predictor is not None:
                logits = predictor(images)
                assert logits.shape == (16, CLASSES)
                torch.testing.assert_close(predictor(images[:3]), logits[:3], rtol=1e-4, atol=1e-4)
    finally:
        learner.train()


@pytest.mark.parametrize("name", [form for form in (*CATALOGUE, *VARIANTS) if method_of(form).family == "fewshot"])
def test_episodic_learners_answer_episodes_of_any_shape(name: str) -> None:
    _, training = trained(name)
    learner = training.learner
    assert isinstance(learner, EpisodicLearner)
    shape = EpisodeShape(2, 4, 2, 3)
    images = tiny_data().images.take(torch.arange(40)).unflatten(0, (2, 20))
    way = torch.arange(4)
    episodes = Episodes(
        images[:, :8],
        way.repeat_interleave(2).expand(2, -1),
        images[:, 8:],
        way.repeat_interleave(3).expand(2, -1),
        shape,
        RandomStream(0, 2, slice(0, 2), torch.device("cpu")),
    )
    learner.eval()
    try:
        logits = learner.query_logits(episodes)
        assert logits.shape == (2, 12, 4)
        assert torch.isfinite(logits).all()
        if isinstance(learner, MetricLearner):
            z = learner.encoder()(images.flatten(0, 1)).unflatten(0, (2, 20))
            torch.testing.assert_close(learner.compare(z[:, :8], episodes.support_label, z[:, 8:], 4), logits)
    finally:
        learner.train()


@names
def test_pictures_are_images(name: str) -> None:
    _, training = trained(name)
    batch = dataclasses.replace(
        start("simclr").step_at(0, 0.0).from_pool(), label=torch.from_numpy(np.tile(np.arange(CLASSES), 4))
    )
    before = {k: v.clone() for k, v in training.learner.state_dict().items()}
    with torch.no_grad():
        pictures = training.learner.pictures(batch)
    for title, x in pictures.items():
        assert x.dim() == 4, title
        assert x.shape[1] in (1, 3), title
        assert x.is_floating_point(), title
        assert 0 <= x.min() <= x.max() <= 1, title
        assert x.numel(), title
    assert differences(before, training.learner.state_dict()) == []


# Devices


def loose_tensors(module: nn.Module) -> Iterator[str]:
    """Tensors that a module holds outside its parameters and buffers, where ``to`` does not reach them."""
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            own = attribute in ("_parameters", "_buffers", "_modules")
            if not own and any(isinstance(item, Tensor) for item in items):
                yield f"{name}.{attribute}"


@names
def test_everything_moves_with_the_learner(name: str) -> None:
    training = start(name)
    assert list(loose_tensors(training.learner)) == []
    meta = training.learner.to("meta")
    assert {t.device.type for t in (*meta.parameters(), *meta.buffers())} == {"meta"}


# Two workers


def two_steps(name: str, world: World) -> list[dict[str, Any]]:
    """For each stage: the loss and averaged gradients of a first step, the state after it, and the loss of a second."""
    training = start(name, world=world)
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

    def run(self, name: str) -> list[list[dict[str, Any]]]:
        """What each worker got from ``two_steps``. After a failure the processes are started anew."""
        if not self.processes:
            self.start()
        files = [Path(self.folder.name) / f"{name}.{rank}.pt" for rank in (0, 1)]
        for process, file in zip(self.processes, files, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"name": name, "file": str(file)}) + "\n")
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
def test_two_workers_equal_one_at_the_same_global_batch(name: str, workers: _Workers) -> None:
    """Tolerances: summing float32 in another order was seen to move losses by 1e-7 and gradients by 1e-6 of themselves, or 1e-3

    where an activation at zero changes sides; a statistic taken over half the batch moves losses by percents. After an AdamW
    step a parameter without a true gradient (a bias before batch normalisation) may differ by twice the learning rate, since
    AdamW turns rounding noise into full steps.
    """
    one = two_steps(name, World())
    for rank, other in enumerate(workers.run(name)):
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
            result = two_steps(job["name"], World(rank, 2))
            torch.save(result, job["file"])
            answers.write("done\n")
        except Exception:
            answers.write(json.dumps(traceback.format_exc()) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
