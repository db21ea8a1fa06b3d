"""SimCLR v2's three stages, and CLIP."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from methods.batch import Batch, Step
from methods.contracts import TrainingError
from methods.data.records import TrainData
from methods.data.views import tokenize
from methods.parts.text import TEMPLATES, TextEncoder, Tokenizer, prompts
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
    training._enter(1, pretrained)
    tuned = training.learner
    assert isinstance(tuned, simclr_v2.FineTune)
    assert tuned.encoder() is pretrained.encoder()
    assert isinstance(tuned.model.head, nn.Sequential)
    assert [type(layer) for layer in tuned.model.head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert tuned.model.head[0] is next(iter(pretrained.head))
    training._one_step()
    training._enter(2, tuned)
    student = training.learner
    assert isinstance(student, simclr_v2.Distil)
    before = {k: v.clone() for k, v in student.teacher.state_dict().items()}
    training._one_step()
    assert all(torch.equal(v, before[k]) for k, v in student.teacher.state_dict().items())
    assert not any(p.requires_grad for p in student.teacher.parameters())


def test_simclr_v2_distils_by_the_formula(
    train: Make, make_data: Data, make_batch: Callable[..., Batch], make_step: Callable[..., Step]
) -> None:
    data = labelled(make_data())
    training = train(simclr_v2.METHOD, data, distil_temperature=2.0, student_width=0.5)
    for stage in (1, 2):
        training._enter(stage, training.learner)
    learner = training.learner
    assert isinstance(learner, simclr_v2.Distil)
    learner.eval()
    total = learner.loss(make_step(make_batch(data, [0, 1, 2]))).total
    batch = make_batch(data, [0, 1, 2])
    x = learner.augment(batch.images, batch.draws)
    expected = 0.0
    with torch.no_grad():
        for t, s in zip(learner.teacher(x).tolist(), learner.student(x).tolist(), strict=True):
            zt, zs = (sum(math.exp(v / 2) for v in row) for row in (t, s))
            expected -= sum(math.exp(a / 2) / zt * math.log(math.exp(b / 2) / zs) for a, b in zip(t, s, strict=True))
    assert total.item() == pytest.approx(expected / 3, rel=1e-4)
    assert learner.encoder().dim == training.learner.teacher.module.encoder.dim // 2


def test_tokenizer_numbers_words_as_the_data_does() -> None:
    tokenizer = Tokenizer(CAPTIONS)
    assert torch.equal(tokenizer.encode(CAPTIONS[:3]), torch.from_numpy(tokenize(CAPTIONS)[:3]))
    assert len(tokenizer) == 6
    with pytest.raises(UserError, match="prompts must use words of the captions, got 'green' in 'a green square'"):
        tokenizer.encode(["a green square"])


def test_prompts_fill_every_template() -> None:
    assert prompts(["red_square"])[0] == [t.replace("{label}", "red square") for t in TEMPLATES]
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


def test_clip_needs_captions(train: Make, make_data: Data) -> None:
    with pytest.raises(TrainingError, match="clip learns from captions, and this data has none"):
        train(clip.METHOD, make_data())


def test_clip_draws_labelled_images_where_only_they_have_captions(train: Make, make_data: Data) -> None:
    data = make_data()
    label = np.where(np.arange(48) < 12, np.arange(48) % 4, -1)
    everywhere = np.arange(1, 49)[:, None]
    with_labels = np.where(label[:, None] >= 0, everywhere, 0)
    hidden = dataclasses.replace(data, label=label, tokens=with_labels)
    assert train(clip.METHOD, hidden).learner.feeds().labelled == 16
    own = dataclasses.replace(data, label=label, tokens=everywhere)
    assert train(clip.METHOD, own).learner.feeds().pool == 16


@pytest.mark.slow
def test_clip_names_combinations_of_attributes_it_never_saw(train: Make) -> None:
    from methods.data.records import ArrayImages, channel_statistics

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
    data = TrainData(pool, none, 1, *channel_statistics(pool), tokens=tokenize(captions), flip=False)
    # conv4 keeps places apart, which the mean over a ResNet's last map does not.
    values = {"batch_size": 64, "augmentation_strength": 0.2, "lr": 4e-3}
    training = train(clip.METHOD, data, "conv4", epochs=8, epoch_images=1024, **values)
    while training.epoch < 8:
        training.train_epoch()
    learner = training.learner.eval()
    classifier = learner.zero_shot(Tokenizer(captions).encode([caption(*one) for one in every])[:, None])
    asked = unseen * 10
    with torch.no_grad():
        answer = classifier(torch.from_numpy(images(asked)).permute(0, 3, 1, 2)).argmax(1)
    right = np.mean([every[a] == one for a, one in zip(answer.tolist(), asked, strict=True)])
    assert right > 10 / len(every), right
