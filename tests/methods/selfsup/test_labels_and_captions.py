"""SimCLR v2's three stages, and CLIP."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from methods.batch import Batch, RandomStream, Step
from methods.contracts import TrainingError
from methods.data.budget import train_data
from methods.data.captions import encode, tell_classes, vocabulary
from methods.data.records import ImageSet, TrainData
from methods.parts.text import TEMPLATES, TextEncoder, prompts
from methods.selfsup import clip, simclr_v2
from methods.training import Training
from methods.world import World
from search_spaces.domains import UserError

Make = Callable[..., Training]
Data = Callable[..., TrainData]
CAPTIONS = ("a red square", "a blue circle", "A red circle", "")


def labelled(data: TrainData) -> TrainData:
    return dataclasses.replace(data, label=np.arange(len(data)) % 4)


def test_simclr_v2_hands_its_model_from_stage_to_stage(train: Make, make_data: Data) -> None:
    training = train(simclr_v2.METHOD, labelled(make_data()), kept_layers=1)
    pretrained = training.learner
    assert [stage.name for stage in training.stages] == ["pretrain", "finetune", "distil"]
    training.enter(1)
    tuned = training.learner
    assert isinstance(tuned, simclr_v2.FineTune)
    assert tuned.encoder() is pretrained.encoder()
    assert isinstance(tuned.model.head, nn.Sequential)
    assert [type(layer) for layer in tuned.model.head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert tuned.model.head[0] is next(iter(pretrained.head))
    training.one_step()
    training.enter(2)
    student = training.learner
    assert isinstance(student, simclr_v2.Distil)
    before = {k: v.clone() for k, v in student.teacher.state_dict().items()}
    training.one_step()
    assert all(torch.equal(v, before[k]) for k, v in student.teacher.state_dict().items())
    assert not any(p.requires_grad for p in student.teacher.parameters())


def test_simclr_v2_distils_by_the_formula(
    train: Make, make_data: Data, make_batch: Callable[..., Batch], make_step: Callable[..., Step]
) -> None:
    data = labelled(make_data())
    training = train(simclr_v2.METHOD, data, distil_temperature=2.0, student_width=0.5)
    for stage in (1, 2):
        training.enter(stage)
    learner = training.learner
    assert isinstance(learner, simclr_v2.Distil)
    learner.eval()
    total = learner.loss(make_step(make_batch(data, [0, 1, 2]))).total
    batch = make_batch(data, [0, 1, 2])
    x = learner.augment(batch.images, batch.stream)
    expected = 0.0
    with torch.no_grad():
        for t, s in zip(learner.teacher(x).tolist(), learner.student(x).tolist(), strict=True):
            zt, zs = (sum(math.exp(v / 2) for v in row) for row in (t, s))
            expected -= sum(math.exp(a / 2) / zt * math.log(math.exp(b / 2) / zs) for a, b in zip(t, s, strict=True))
    assert total.item() == pytest.approx(expected / 3, rel=1e-4)
    assert learner.encoder().dim == training.learner.teacher.module.encoder.dim // 2


def test_words_are_numbered_in_alphabetical_order_and_unknown_ones_left_out() -> None:
    words = vocabulary(CAPTIONS)
    assert words == ("a", "blue", "circle", "red", "square")
    assert encode(CAPTIONS, words).tolist() == [[1, 4, 5], [1, 2, 3], [1, 4, 3], [0, 0, 0]]
    assert encode(["a GREEN square", "green"], words).tolist() == [[1, 5], [0, 0]]


def test_names_and_captions_are_read_alike() -> None:
    """A class named otherwise than its captions spell it must not pass for one that they do not tell."""
    captions = ["A sea lion, asleep.", "two sea lions", "greek alpha", "the Greek/alpha"]
    label, classes = np.array([0, 0, 1, 1]), ("sea_lion", "Greek/alpha")
    for k in range(4):
        assert tell_classes(captions[k : k + 1], label[k : k + 1], classes), captions[k]
    assert encode(["sea_lion", "lion,"], vocabulary(captions)).astype(bool).sum(1).tolist() == [2, 2]
    assert vocabulary(["a dog, running", "C++"]) == ("+", ",", "a", "c", "dog", "running")


def test_captions_that_mostly_spell_out_the_class_tell_it() -> None:
    label, classes = np.array([0, 1, 0, -1]), ("square", "circle")
    assert tell_classes(CAPTIONS, label, classes)
    assert not tell_classes(CAPTIONS, label, ("oval", "circle"))
    assert not tell_classes((), label, classes)
    assert not tell_classes(CAPTIONS, np.full(4, -1), classes)


def test_prompts_fill_every_template() -> None:
    assert prompts(["red_square", "a/b"]) == [t.replace("{label}", x) for x in ("red_square", "a/b") for t in TEMPLATES]
    with pytest.raises(UserError, match="a prompt template must contain"):
        prompts(["x"], ["a photo"])


def test_text_embedding_does_not_depend_on_padding() -> None:
    network = TextEncoder(10, 6, 16, 2).eval()
    tokens = torch.tensor([[3, 1, 4], [2, 0, 0]])
    padded = torch.nn.functional.pad(tokens, (0, 3))
    torch.testing.assert_close(network(tokens), network(padded))
    assert torch.isfinite(network(torch.zeros(2, 3, dtype=torch.int64))).all()


def test_caption_loss_is_symmetric_cross_entropy() -> None:
    image, text = (torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1) for _ in range(2))
    tokens = torch.arange(1, 5)[:, None]
    loss, _ = clip.caption_loss(image, text, tokens, torch.tensor(7.0, dtype=torch.float64), World())
    expected = 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(4):
            scores = [7 * float(a[i] @ b[j]) for j in range(4)]
            expected += (-scores[i] + math.log(sum(math.exp(s) for s in scores))) / 8
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_missing_captions_do_not_count_and_equal_captions_are_one() -> None:
    image, text = (torch.nn.functional.normalize(torch.randn(5, 3), dim=1) for _ in range(2))
    tokens = torch.tensor([[1], [2], [0], [3], [0]])
    scale = torch.tensor(5.0)
    present = torch.tensor([0, 1, 3])
    loss, _ = clip.caption_loss(image, text, tokens, scale, World())
    torch.testing.assert_close(loss, clip.caption_loss(image[present], text[present], tokens[present], scale, World())[0])
    twins = torch.tensor([[1], [1]])
    _, found = clip.caption_loss(image[:2], text[:2], twins, scale, World())
    assert found.item() == 1


def test_clip_needs_captions_or_class_names(train: Make, make_data: Data) -> None:
    with pytest.raises(TrainingError, match="clip needs images with captions, or with labels and class names, and got none"):
        train(clip.METHOD, make_data())


@pytest.mark.parametrize(
    ("captions", "feed"),
    [
        ([f"image {i}" for i in range(48)], "pool"),
        ([f"a view of {'abcd'[i % 4]}" for i in range(48)], "labelled"),
        ([], "labelled"),
    ],
)
def test_captions_that_are_labels_come_with_the_label_budget(
    train: Make, make_data: Data, captions: list[str], feed: str
) -> None:
    label = np.where(np.arange(48) < 12, np.arange(48) % 4, -1)
    images, classes = make_data().images, tuple("abcd")
    told = tell_classes(captions, label, classes)
    data = train_data(ImageSet(images, label, classes, captions=tuple(captions), caption_labels=told), label)
    training = train(clip.METHOD, data)
    assert getattr(training.learner.batch_spec(), feed) == training.learner.batch_spec().images == 16
    assert training.uses_labels == (feed == "labelled")
    assert math.isfinite(training.train_epoch().parts["loss"])


def test_class_names_make_captions_through_templates(train: Make, make_data: Data) -> None:
    label = np.arange(48) % 3
    data = train_data(ImageSet(make_data().images, label, ("sea_lion", "lion", "cat")), label)
    learner = train(clip.METHOD, data).learner
    one = train(clip.METHOD, data, templates="one").learner
    assert learner.phrasings.shape[:2] == (3, len(TEMPLATES))
    assert [learner.words[t - 1] for t in learner.phrasings[0, 0].tolist() if t] == ["a", "photo", "of", "a", "sea", "lion"]
    assert one.phrasings.shape[:2] == (3, 1)
    classifier = learner.eval().zero_shot(["cat", "lion"])
    head = classifier.head[1].weight
    with torch.no_grad():
        made = [learner.text_head(learner.text(learner.phrasings[2, t : t + 1])) for t in range(len(TEMPLATES))]
        mean = torch.cat([torch.nn.functional.normalize(z, dim=1) for z in made]).mean(0)
    torch.testing.assert_close(head[0], mean)
    with pytest.raises(UserError, match="zero_shot needs class names in words of the captions, got 'dog'"):
        learner.zero_shot(["cat", "dog"])
    with pytest.raises(UserError, match="that differ in words of the captions, got 'sea_lion' and 'sea lion cub'"):
        learner.zero_shot(["sea_lion", "cat", "sea lion cub"])


def test_clip_on_class_names_goes_on_bitwise_and_two_workers_draw_its_captions_between_them(
    train: Make, make_data: Data
) -> None:
    label = np.arange(48) % 3
    data = train_data(ImageSet(make_data().images, label, ("sea lion", "lion", "cat")), label)
    whole, first = train(clip.METHOD, data), train(clip.METHOD, data)
    whole.train_epoch()
    first.train_epoch()
    other = train(clip.METHOD, data)
    other.load(first.state())
    assert whole.train_epoch().parts == other.train_epoch().parts
    # What a worker draws of the global batch: its half of the labels, and of the phrasings.
    learner = whole.learner
    batch = whole.step_at(0, 0.0).from_labelled()
    tokens, same = learner.captions(batch)
    halves = []
    for rank in range(2):
        rows = slice(rank * 8, rank * 8 + 8)
        draws = RandomStream(batch.stream.seed, 16, rows, torch.device("cpu"))
        part = dataclasses.replace(batch, images=batch.images[rows], label=batch.labels()[rows], stream=draws)
        halves.append(learner.captions(part))
    assert torch.equal(torch.cat([half[0] for half in halves]), tokens)
    assert torch.equal(torch.cat([half[1] for half in halves]), same)


@pytest.mark.slow
def test_clip_names_combinations_of_attributes_it_never_saw(train: Make) -> None:
    from methods.data.records import ArrayImages

    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
    places, sizes = ("left", "inner", "outer", "right"), ("small", "tall")
    rng = np.random.default_rng(0)
    every = [(colour, place, size) for colour in colours for place in range(4) for size in range(2)]
    unseen = [every[i] for i in (0, 6, 9, 13, 18, 27)]

    def caption(colour: str, place: int, size: int) -> str:
        return f"a {sizes[size]} {colour} bar at the {places[place]}"

    def images(chosen: list[tuple[str, int, int]]) -> np.ndarray:
        x = rng.integers(0, 60, (len(chosen), 16, 16, 3))
        for image, (colour, place, size) in zip(x, chosen, strict=True):
            half = 2 + 3 * size
            image[8 - half : 8 + half, 4 * place : 4 * place + 4] += 180 * np.array(colours[colour])
        return x.astype(np.uint8)

    shown = [one for one in every if one not in unseen] * 20
    captions = tuple(caption(*one) for one in shown)
    pool = ArrayImages(images(shown))
    none = np.full(len(shown), -1, dtype=np.int64)
    data = train_data(ImageSet(pool, none, ("bar",), captions=captions, flip=False), none)
    # conv4 keeps places apart, which the mean over a ResNet's last map does not.
    values = {"batch_size": 64, "augmentation_strength": 0.2, "lr": 4e-3}
    training = train(clip.METHOD, data, "conv4", epochs=8, epoch_images=1024, **values)
    while training.epoch < 8:
        training.train_epoch()
    learner = training.learner.eval()
    classifier = learner.zero_shot([caption(*one) for one in every])
    asked = unseen * 10
    with torch.no_grad():
        answer = classifier(torch.from_numpy(images(asked)).permute(0, 3, 1, 2)).argmax(1)
    right = np.mean([every[a] == one for a, one in zip(answer.tolist(), asked, strict=True)])
    assert right > 10 / len(every), right
