"""What every method owes: legal knobs, exact repetition, honest use of labels, an encoder that answers for itself.

A check is a function of a case. It raises an AssertionError with a sentence where the method owes something; what the method
itself raises is passed on as it is.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from methods.batch import Episodes, EpisodeShape, RandomStream
from methods.contracts import EpisodicLearner, Learner, MetricLearner
from methods.parts.encoders import Encoder
from methods.parts.modes import evaluating
from methods.testing.cases import CLASSES, Case, through_file, tiny_batch
from methods.training import Precision
from search_spaces.domains import Choice, KnobError, build, check_inside, knobs


def owes(holds: object, case: Case, sentence: str) -> None:
    """Raises AssertionError with the sentence unless it holds."""
    if not holds:
        raise AssertionError(f"{case}: {sentence}")


def require_close(found: Tensor, expected: Tensor, case: Case, sentence: str, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda what: f"{case}: {sentence}\n{what}")


def _differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not bitwise equal."""
    return [name for name in a if name not in b or not torch.equal(a[name].nan_to_num(), b[name].nan_to_num())]


# The entry


def check_entry(case: Case) -> None:
    """The catalogue entry is complete and its stages fill the training."""
    method = case.method
    for attribute in ("name", "paper", "summary"):
        owes(getattr(method, attribute), case, f"its entry must have a {attribute}")
    owes(not method.summary.endswith("."), case, "its summary is a line in a list and must not end with a full stop")
    config = method.config
    frozen = dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    owes(frozen, case, "its config must be a frozen dataclass")
    stages = method.plan(case.config())
    shares = sum(stage.share for stage in stages)
    owes(abs(shares - 1) < 1e-6, case, f"the shares of its stages must sum to 1, got {shares}")
    owes(len({stage.name for stage in stages}) == len(stages), case, "its stages must have names of their own")


def check_knobs(case: Case) -> None:
    """Each knob is documented, and its default and search range are legal."""
    config = case.method.config
    declared = knobs(config)
    defaults = {name: knob.default for name, knob in declared.items() if not knob.variants}
    owes(build(config, {}) == build(config, defaults), case, "its config without values must be the knobs' defaults")
    for name, knob in declared.items():
        owes(knob.doc and not knob.doc.endswith("."), case, f"knob {name} must have a doc without a full stop")
        owes(knob.source, case, f"knob {name} must say where its default is from")
        owes(knob.legal.contains(knob.default), case, f"the default of {name}, {knob.default}, must be legal")
        for default, search in [(knob.default, knob.search), *((v.default, v.search) for v in knob.variants)]:
            if search is None:
                continue
            inside = search.contains(default)
            owes(inside, case, f"the default of {name}, {default}, must lie inside its search range, {search.describe()}")
            try:
                check_inside(search, knob.legal, name)
                for value in search.options if isinstance(search, Choice) else (search.low, search.high):
                    knob.check(value, name)
            except KnobError as error:
                raise AssertionError(f"{case}: {error}") from error


def check_pickles(case: Case) -> None:
    """Method and config travel to other processes: their learners and stages are named in a module."""
    for what, value in (("method", case.method), ("config", case.config())):
        try:
            same = pickle.loads(pickle.dumps(value)) == value  # noqa: S301 (written one line before)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(f"{case}: its {what} must pickle, {error}") from error
        owes(same, case, f"its {what} must be equal to itself after pickling")


# One training


def check_loss(case: Case) -> None:
    """Losses are finite scalars with a gradient, and their parts detached ones."""
    training = case.start()
    loss = training.learner.loss(training.step_at(0, 0.0))
    owes(loss.total.shape == (), case, f"its loss must be a scalar, got the shape {tuple(loss.total.shape)}")
    owes(loss.total.requires_grad, case, "its loss must have a gradient")
    for name, value in {"loss": loss.total, **loss.parts}.items():
        owes(value.shape == (), case, f"{name} must be a scalar, got the shape {tuple(value.shape)}")
        owes(torch.isfinite(value), case, f"{name} must be finite, got {float(value.detach())}")
        owes(name == "loss" or not value.requires_grad, case, f"{name} is a part of the loss and must be detached")
    reports, _ = case.trained()
    for epoch, report in enumerate(reports, 1):
        owes(np.isfinite(report["loss"]), case, f"its loss must stay finite, got {report['loss']} in epoch {epoch}")


def check_gradient(case: Case, precisions: tuple[Precision, ...] = ("fp32", "bf16")) -> None:
    """The gradient reaches the scored encoder, or that follows what it does reach: a student, or low-rank updates.

    In bf16 too, where a pass without gradient must not leave its casts of the weights to one with.
    """
    for precision in precisions:
        training = case.start(precision=precision)
        encoder = training.learner.encoder()
        before = {k: v.clone() for k, v in encoder.state_dict().items()}
        with training.autocast():
            training.learner.loss(training.step_at(0, 0.0)).total.backward()
        reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in encoder.parameters() if p.requires_grad]
        if reached:
            share = float(np.mean(reached))
            owes(share >= 0.8, case, f"the gradient must reach the encoder; in {precision} it reaches {share:.0%} of it")
            continue
        training.optimisation.optimizer.zero_grad()
        training.train_epoch()
        moved = _differing(before, training.learner.encoder().state_dict())
        # Weights, and not statistics alone; low-rank updates leave the normalisation's as they are.
        weights = {name for name, value in before.items() if value.dim() > 1}
        follows = len(weights.intersection(moved)) > len(weights) / 2
        owes(follows, case, f"its encoder takes no gradient, so it must follow one that does; in {precision} it stays")


def check_same_seed(case: Case) -> None:
    """The same seed gives the same losses and weights to the last bit, and another seed gives others."""
    reports, first = case.trained()
    torch.manual_seed(123)  # Whatever the process did before must not matter.
    np.random.seed(123)
    again = case.start()
    told = [again.train_epoch().parts for _ in range(2)]
    owes(told == reports, case, "the same seed must give the same losses: draw from the batch's stream alone")
    differing = _differing(first.learner.state_dict(), again.learner.state_dict())
    owes(not differing, case, f"the same seed must give the same weights, but these differ: {', '.join(differing[:3])}")
    other = case.start(seed=1).train_epoch().parts["loss"]
    owes(other != reports[0]["loss"], case, "another seed must give another loss")


def check_resume(case: Case) -> None:
    """Stopped and resumed is bitwise what runs through.

    It is resumed in a learner whose every saved tensor was spoilt, so that the state is seen to be the whole of it.
    """
    reports, whole = case.trained()
    before = case.start()
    before.train_epoch()
    state = through_file(before.state())
    after = case.start()
    while after.stage_number < state["stage"]:
        after.enter(after.stage_number + 1)
    for value in after.learner.state_dict().values():
        value.fill_(1)
    after.load(state)
    rule = "a training that stops and resumes must equal one that does not: what training changes is a parameter or a buffer"
    owes(after.train_epoch().parts == reports[1], case, f"{rule}; the losses differ")
    differing = _differing(whole.learner.state_dict(), after.learner.state_dict())
    owes(not differing, case, f"{rule}; these differ: {', '.join(differing[:3])}")


def check_labels_unread(case: Case) -> None:
    """A method that declares no labels reads none; one that declares them asks for some."""
    method, spec = case.method, case.start().learner.batch_spec()
    asks = bool(spec.labelled or spec.episodes)
    if method.reads_labels(case.data()):
        owes(asks or len(method.plan(case.config())) > 1, case, "it declares that it uses labels, and asks for none")
        return
    rule = "it declares that it uses no labels, so it must not read them"
    owes(not asks, case, f"{rule}, but it asks for labelled images")
    reports, _ = case.trained()
    hidden = case.start(labels=False)
    told = [hidden.train_epoch().parts for _ in range(2)]
    owes(told == reports, case, f"{rule}; without them its losses are others")


def check_encoder(case: Case) -> None:
    """Encoder and predictor answer for each image by itself, bytes as floats, in whatever stage the training is."""
    halfway = case.start()
    halfway.train_epoch()
    for learner in (halfway.learner, case.trained()[1].learner):
        with torch.no_grad(), evaluating(learner):
            _answers(case, learner)


def _answers(case: Case, learner: Learner) -> None:
    images = tiny_batch().images
    encoder, predictor = learner.encoder(), learner.predictor()
    owes(isinstance(encoder, Encoder), case, f"its encoder must be an Encoder, got {type(encoder).__name__}")
    z = encoder(images)
    expected = (len(images), encoder.dim)
    owes(z.shape == expected, case, f"its encoder must give embeddings of the shape {expected}, got {tuple(z.shape)}")
    alone = "must answer for each image by itself, whatever stands beside it in a batch"
    require_close(encoder(images[:3]), z[:3], case, f"its encoder {alone}", 1e-4, 1e-5)
    require_close(encoder(images.float() / 255), z, case, "its encoder must take bytes for the floats they mean", 1e-3, 1e-4)
    if predictor is not None:
        logits = predictor(images)
        fits = logits.shape == (len(images), CLASSES)
        owes(fits, case, f"its predictor must give a logit for each class, got {tuple(logits.shape)}")
        require_close(predictor(images[:3]), logits[:3], case, f"its predictor {alone}", 1e-4, 1e-4)


def check_episodes(case: Case) -> None:
    """An episodic learner answers episodes of another shape than those it is trained on; others owe nothing."""
    learner = case.trained()[1].learner
    if not isinstance(learner, EpisodicLearner):
        owes(case.method.family != "fewshot", case, "a few-shot method must end with an EpisodicLearner")
        return
    images = case.data().images.take(torch.arange(40)).unflatten(0, (2, 20))
    way = torch.arange(4)
    episodes = Episodes(
        support=images[:, :8],
        support_label=way.repeat_interleave(2).expand(2, -1),
        query=images[:, 8:],
        query_label=way.repeat_interleave(3).expand(2, -1),
        shape=EpisodeShape(2, 4, 2, 3),
        stream=RandomStream(0, 2, slice(0, 2), torch.device("cpu")),
    )
    with evaluating(learner):
        logits = learner.query_logits(episodes)
        fits = logits.shape == (2, 12, 4)
        owes(fits, case, f"2 tasks of 12 queries and 4 ways must have logits [2, 12, 4], got {list(logits.shape)}")
        owes(torch.isfinite(logits).all(), case, "its logits must be finite")
        if isinstance(learner, MetricLearner):
            z = learner.encoder()(images.flatten(0, 1)).unflatten(0, (2, 20))
            compared = learner.compare(z[:, :8], episodes.support_label, z[:, 8:], 4)
            require_close(compared, logits, case, "comparing embeddings must give its logits", 1.3e-6, 1e-5)


def check_pictures(case: Case) -> None:
    """Pictures are images in [0, 1], and drawing them changes nothing."""
    learner = case.trained()[1].learner
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    with torch.no_grad():
        pictures = learner.pictures(tiny_batch())
    for title, x in pictures.items():
        image = x.dim() == 4 and x.shape[1] in (1, 3) and x.is_floating_point() and x.numel() > 0
        owes(image, case, f"picture {title!r} must be floats [n, 1 or 3, H, W], got {x.dtype} {list(x.shape)}")
        owes(x.min() >= 0 and x.max() <= 1, case, f"picture {title!r} must lie in [0, 1]")
    owes(not _differing(before, learner.state_dict()), case, "drawing pictures must not change the learner")


# Devices


def _loose_tensors(module: nn.Module) -> Iterator[str]:
    """Tensors that a module holds outside its parameters and buffers, where ``to`` does not reach them."""
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            own = attribute in ("_parameters", "_buffers", "_modules")
            if not own and any(isinstance(item, Tensor) for item in items):
                yield f"{name}.{attribute}".lstrip(".")


def check_device(case: Case) -> None:
    """Everything moves with the learner."""
    learner = case.start().learner
    loose = list(_loose_tensors(learner))
    owes(not loose, case, f"tensors must be parameters or buffers to move with it, but these are not: {', '.join(loose)}")
    meta = learner.to("meta")
    left = {t.device.type for t in (*meta.parameters(), *meta.buffers())} - {"meta"}
    owes(not left, case, f"everything must move with the learner, but something stays on {', '.join(sorted(left))}")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_entry,
    check_knobs,
    check_pickles,
    check_loss,
    check_gradient,
    check_same_seed,
    check_resume,
    check_labels_unread,
    check_encoder,
    check_episodes,
    check_pictures,
    check_device,
)
"""All that a method owes, cheapest first."""
