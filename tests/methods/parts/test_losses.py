"""Every loss against the paper's formula as a plain loop over float64, its gradient, and two workers against one."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from methods.parts import losses
from methods.world import World
from search_spaces.domains import UserError

B, D, K = 6, 4, 5
LABEL = [0, 1, 0, 2, 1, 0]


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Z1, Z2 = _draw(B, D, seed=1), _draw(B, D, seed=2)
OTHERS, NOISE, BANK = _draw(K, D, seed=3), _draw(B, 3, D, seed=4), _draw(9, D, seed=5)
P, Q = _draw(B, K, seed=6), _draw(B, K, seed=7)
LABELS = torch.tensor(LABEL)
T = 0.3


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: list[float]) -> list[float]:
    return [x / math.sqrt(dot(a, a)) for x in a]


def d2(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def softmax(a: list[float]) -> list[float]:
    return [math.exp(x) / sum(math.exp(y) for y in a) for x in a]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def loop_nt_xent(normalise: bool) -> float:
    z = [*Z1.tolist(), *Z2.tolist()]
    z = [unit(v) for v in z] if normalise else z
    terms = []
    for i in range(2 * B):
        j = (i + B) % (2 * B)
        below = sum(math.exp(dot(z[i], z[k]) / T) for k in range(2 * B) if k != i)
        terms.append(-math.log(math.exp(dot(z[i], z[j]) / T) / below))
    return mean(terms)


def loop_info_nce(negatives: list[list[list[float]]]) -> float:
    terms = []
    for q, k, row in zip(Z1.tolist(), Z2.tolist(), negatives, strict=True):
        own = math.exp(dot(unit(q), unit(k)) / T)
        terms.append(-math.log(own / (own + sum(math.exp(dot(unit(q), unit(n)) / T) for n in row))))
    return mean(terms)


def loop_nonparametric(index: list[int]) -> float:
    terms = []
    for z, i in zip(Z1.tolist(), index, strict=True):
        scores = [math.exp(dot(unit(z), v) / T) for v in BANK.tolist()]
        terms.append(-math.log(scores[i] / sum(scores)))
    return mean(terms)


def loop_nce(n: int, constant: float) -> float:
    m = NOISE.shape[1]

    def h(q: list[float], v: list[float]) -> float:
        p = math.exp(dot(q, v) / T) / constant
        return p / (p + m / n)

    rows = zip(Z1.tolist(), Z2.tolist(), NOISE.tolist(), strict=True)
    return mean([-math.log(h(q, v)) - sum(math.log(1 - h(q, w)) for w in noise) for q, v, noise in rows])


def loop_barlow(lam: float) -> float:
    def standard(z: list[list[float]]) -> list[list[float]]:
        columns = []
        for j in range(D):
            column = [row[j] for row in z]
            centre = mean(column)
            spread = math.sqrt(mean([(x - centre) ** 2 for x in column]) + 1e-5)
            columns.append([(x - centre) / spread for x in column])
        return columns

    one, two = standard(Z1.tolist()), standard(Z2.tolist())
    total = 0.0
    for i in range(D):
        for j in range(D):
            c = dot(one[i], two[j]) / B
            total += (1 - c) ** 2 if i == j else lam * c**2
    return total


def loop_vicreg(scale: float) -> tuple[float, float, float]:
    one, two = (scale * Z1).tolist(), (scale * Z2).tolist()
    s = mean([(one[i][j] - two[i][j]) ** 2 for i in range(B) for j in range(D)])
    v = c = 0.0
    for z in (one, two):
        centre = [mean([row[j] for row in z]) for j in range(D)]
        cov = [[sum((row[i] - centre[i]) * (row[j] - centre[j]) for row in z) / (B - 1) for j in range(D)] for i in range(D)]
        v += mean([max(0.0, 1 - math.sqrt(cov[j][j] + 1e-4)) for j in range(D)])
        c += sum(cov[i][j] ** 2 for i in range(D) for j in range(D) if i != j) / D
    return s, v, c


def loop_triplets(mining: str) -> list[tuple[int, int, int]]:
    z, found = Z1.tolist(), []
    for a in range(B):
        positives = [p for p in range(B) if p != a and LABEL[p] == LABEL[a]]
        negatives = [n for n in range(B) if LABEL[n] != LABEL[a]]
        if mining == "hardest" and positives:
            farthest = max(positives, key=lambda p: d2(z[a], z[p]))
            found.append((a, farthest, min(negatives, key=lambda n: d2(z[a], z[n]))))
        for p in positives if mining != "hardest" else []:
            if mining == "all":
                found += [(a, p, n) for n in negatives]
                continue
            beyond = [n for n in negatives if d2(z[a], z[n]) > d2(z[a], z[p])]
            farthest = max(negatives, key=lambda n: d2(z[a], z[n]))
            found.append((a, p, min(beyond, key=lambda n: d2(z[a], z[n])) if beyond else farthest))
    return found


def loop_triplet(margin: float, mining: str) -> float:
    z = Z1.tolist()
    return mean([max(0.0, d2(z[a], z[p]) - d2(z[a], z[n]) + margin) for a, p, n in loop_triplets(mining)])


def loop_pairs(margin: float, form: str, mining: str) -> float:
    z = Z1.tolist()

    def push(i: int, j: int) -> float:
        d = d2(z[i], z[j])
        return max(0.0, margin - math.sqrt(d)) ** 2 if form == "hadsell" else max(0.0, margin - d)

    if mining == "all":
        pairs = [(i, j) for i in range(B) for j in range(i)]
        return mean([d2(z[i], z[j]) if LABEL[i] == LABEL[j] else push(i, j) for i, j in pairs])
    mined = loop_triplets(mining)
    return mean([d2(z[a], z[p]) for a, p, _ in mined] + [push(a, n) for a, _, n in mined])


def loop_n_pair(label: list[int]) -> float:
    a, p = Z1.tolist(), Z2.tolist()
    return mean(
        [
            math.log(1 + sum(math.exp(dot(a[i], p[j]) - dot(a[i], p[i])) for j in range(B) if label[j] != label[i]))
            for i in range(B)
        ]
    )


def close(found: Tensor, expected: float | list[float]) -> None:
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalise", [True, False])
def test_nt_xent(normalise: bool) -> None:
    close(losses.nt_xent(Z1, Z2, T, normalise=normalise), loop_nt_xent(normalise))


def test_nt_xent_is_symmetric_and_does_not_depend_on_the_order_or_on_lengths() -> None:
    value = losses.nt_xent(Z1, Z2, T)
    torch.testing.assert_close(losses.nt_xent(Z2, Z1, T), value)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(losses.nt_xent(Z1[order], 7 * Z2[order], T), value)


def test_nt_xent_refuses_a_batch_without_negatives() -> None:
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        losses.nt_xent(Z1[:1], Z2[:1], T)


def test_info_nce() -> None:
    close(losses.info_nce(Z1, Z2, OTHERS, T), loop_info_nce([OTHERS.tolist()] * B))
    close(losses.info_nce(Z1, Z2, NOISE, T), loop_info_nce(NOISE.tolist()))


def test_info_nce_in_a_batch_is_the_n_pair_loss_of_scaled_embeddings() -> None:
    a, p = (nn.functional.normalize(z, dim=1) for z in (Z1, Z2))
    keys = torch.stack([torch.cat([p[:i], p[i + 1 :]]) for i in range(B)])
    torch.testing.assert_close(losses.info_nce(Z1, Z2, keys, T), losses.n_pair(a / T, p))


def test_nonparametric_softmax() -> None:
    index = [4, 0, 8, 8, 1, 2]
    close(losses.nonparametric_softmax(Z1, torch.tensor(index), BANK, T), loop_nonparametric(index))


def test_nce() -> None:
    log_z = torch.tensor(3.0, dtype=torch.float64)
    close(losses.nce(Z1, Z2, NOISE, T, 50, log_z), loop_nce(50, math.exp(3.0)))


def test_nce_constant_is_the_images_times_the_mean_score() -> None:
    scores = [math.exp(dot(q, v) / T) for q, row in zip(Z1.tolist(), NOISE.tolist(), strict=True) for v in row]
    assert losses.nce_log_constant(Z1, NOISE, T, 50).exp().item() == pytest.approx(50 * mean(scores))


def test_barlow() -> None:
    close(losses.barlow(Z1, Z2, 0.05), loop_barlow(0.05))


def test_barlow_is_zero_for_equal_views_with_independent_units() -> None:
    z = torch.linalg.qr(_draw(50, D, seed=9) - _draw(50, D, seed=9).mean(0)).Q
    assert losses.barlow(z, 3 * z + 1, 1.0, eps=0).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_vicreg(scale: float) -> None:
    expected = loop_vicreg(scale)
    for found, value in zip(losses.vicreg_terms(scale * Z1, scale * Z2), expected, strict=True):
        close(found, value)
    close(losses.vicreg(scale * Z1, scale * Z2, 25, 24, 2), 25 * expected[0] + 24 * expected[1] + 2 * expected[2])


@pytest.mark.parametrize("mining", losses.MINING)
@pytest.mark.parametrize("margin", [0.2, 3.0])
def test_triplet(mining: str, margin: float) -> None:
    close(losses.triplet(Z1, LABELS, margin, mining), loop_triplet(margin, mining))  # type: ignore[arg-type]


@pytest.mark.parametrize("mining", losses.MINING)
@pytest.mark.parametrize("form", losses.FORMS)
def test_pairwise_contrastive(form: str, mining: str) -> None:
    value = losses.pairwise_contrastive(Z1, LABELS, 3.0, form, mining)  # type: ignore[arg-type]
    close(value, loop_pairs(3.0, form, mining))


def test_the_two_contrastive_forms_differ() -> None:
    assert loop_pairs(3.0, "hadsell", "all") != pytest.approx(loop_pairs(3.0, "squared", "all"))


@pytest.mark.parametrize("mining", losses.MINING)
def test_metric_losses_without_positives_or_without_negatives_are_finite(mining: str) -> None:
    for label in (torch.arange(B), torch.zeros(B, dtype=torch.int64)):
        z = Z1.clone().requires_grad_()
        losses.triplet(z, label, 0.2, mining).backward()  # type: ignore[arg-type]
        losses.pairwise_contrastive(z, label, 1.0, "hadsell", mining).backward()  # type: ignore[arg-type]
        assert z.grad is not None
        assert z.grad.isfinite().all()


def test_equal_embeddings_have_a_finite_gradient() -> None:
    z = torch.ones(B, D, dtype=torch.float64, requires_grad=True)
    (losses.triplet(z, LABELS, 0.2, "all") + losses.pairwise_contrastive(z, LABELS, 1.0)).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_unknown_mining_and_form_are_refused() -> None:
    with pytest.raises(UserError, match="semi_hard"):
        losses.triplet(Z1, LABELS, 0.2, "easy")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="hadsell"):
        losses.pairwise_contrastive(Z1, LABELS, 0.2, "cubed")  # type: ignore[arg-type]


def test_n_pair() -> None:
    close(losses.n_pair(Z1, Z2), loop_n_pair(list(range(B))))
    close(losses.n_pair(Z1, Z2, LABELS), loop_n_pair(LABEL))


def test_next_of_class_goes_round_each_class() -> None:
    assert losses.next_of_class(torch.tensor([2, 0, 2, 1, 0, 2])).tolist() == [2, 4, 5, 3, 1, 0]


def test_losses_between_predictions() -> None:
    p, q = P.tolist(), Q.tolist()
    rows = [(softmax(a), softmax(b)) for a, b in zip(p, q, strict=True)]
    close(losses.entropy(P), [-sum(x * math.log(x) for x in a) for a, _ in rows])
    close(losses.kl(P, Q), [sum(x * math.log(x / y) for x, y in zip(a, b, strict=True)) for a, b in rows])
    cross = [-sum(y * math.log(x) for x, y in zip(a, b, strict=True)) for a, b in rows]
    close(losses.soft_cross_entropy(P, Q.softmax(1)), cross)
    squares = [mean([(x - y) ** 2 for x, y in zip(a, b, strict=True)]) for a, b in rows]
    close(losses.consistency_mse(P.softmax(1), Q.softmax(1)), squares)


def test_losses_between_predictions_stay_finite_when_sure() -> None:
    sure = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]], requires_grad=True)
    unsure = torch.zeros(2, 2)
    value = losses.entropy(sure) + losses.kl(sure, unsure) + losses.kl(unsure, sure) + losses.soft_cross_entropy(sure, unsure)
    value.sum().backward()
    assert value.isfinite().all()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0, 2.0])
def test_sharpen(t: float) -> None:
    p = P.softmax(1)
    expected = []
    for row in p.tolist():
        powers = [x ** (1 / t) for x in row]
        expected.append([x / sum(powers) for x in powers])
    torch.testing.assert_close(losses.sharpen(p, t), torch.tensor(expected, dtype=torch.float64))


def test_sharpen_keeps_zeros_and_neither_overflows_nor_divides_by_zero() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.4, 0.4], [1e-30, 1e-30, 1.0]])
    assert losses.sharpen(p, 0.5)[0].tolist() == pytest.approx([0, 1, 0], abs=1e-30)
    cold = losses.sharpen(p, 1e-3)
    torch.testing.assert_close(cold, torch.tensor([[0.0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]))


def test_mixup() -> None:
    lam = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.75, 0.1], dtype=torch.float64)
    x, other = _draw(B, 2, 3, 3, seed=11), _draw(B, 2, 3, 3, seed=12)
    mixed, target = losses.mixup(x, P, other, Q, lam)
    for i, share in enumerate(lam.tolist()):
        torch.testing.assert_close(mixed[i], share * x[i] + (1 - share) * other[i])
        torch.testing.assert_close(target[i], share * P[i] + (1 - share) * Q[i])


SCALARS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nt_xent": lambda a, b: losses.nt_xent(a, b, T),
    "info_nce": lambda a, b: losses.info_nce(a, b, OTHERS.to(a.dtype), T),
    "nce": lambda a, b: losses.nce(a, b, NOISE.to(a.dtype), T, 50, a.new_tensor(3.0)),
    "barlow": lambda a, b: losses.barlow(a, b, 0.05),
    "vicreg": lambda a, b: losses.vicreg(0.25 * a, 0.25 * b),
    "triplet": lambda a, b: losses.triplet(a, LABELS, 3.0, "all"),
    "pairwise": lambda a, b: losses.pairwise_contrastive(a, LABELS, 3.0),
    "n_pair": lambda a, b: losses.n_pair(a, b, LABELS),
}


@pytest.mark.parametrize("name", SCALARS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(SCALARS[name], (Z1.clone().requires_grad_(), Z2.clone().requires_grad_()))


@pytest.mark.parametrize("name", SCALARS)
def test_half_precision_inputs_under_autocast_give_the_float32_value(name: str) -> None:
    one, two = Z1.bfloat16(), Z2.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = SCALARS[name](one.float(), two.float())
        narrow = SCALARS[name](one, two) if name not in ("info_nce", "nce") else value
    assert value.dtype == narrow.dtype == torch.float32
    exact = SCALARS[name](one.double(), two.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-5, atol=1e-6)


GATHERED: dict[str, Callable[[Tensor, Tensor, Tensor, World], Tensor]] = {
    "nt_xent": lambda a, b, y, w: losses.nt_xent(a, b, T, w),
    "nt_xent_plain": lambda a, b, y, w: losses.nt_xent(a, b, 5.0, w, normalise=False),
    "barlow": lambda a, b, y, w: losses.barlow(a, b, 0.05, w),
    "vicreg": lambda a, b, y, w: losses.vicreg(0.3 * a, 0.3 * b, world=w),
    "n_pair": lambda a, b, y, w: losses.n_pair(a, b, y, w),
    **{f"triplet_{m}": lambda a, b, y, w, m=m: losses.triplet(a, y, 3.0, m, w) for m in losses.MINING},
    **{
        f"pairs_{f}_{m}": lambda a, b, y, w, f=f, m=m: losses.pairwise_contrastive(a, y, 3.0, f, m, w)
        for m in losses.MINING
        for f in losses.FORMS
    },
    "constant": lambda a, b, y, w: losses.nce_log_constant(a, b[:, None], T, 50, w) + 0 * a.mean(),
}


def cases(world: World) -> dict[str, Tensor]:
    """Value and gradient of every gathered loss on this worker's rows, averaged over the workers as training does."""
    found = {}
    rows = world.rows(B)
    for name, loss in GATHERED.items():
        weight = nn.Parameter(_draw(D, D, seed=20))
        value = loss(Z1[rows] @ weight, Z2[rows] @ weight.tanh(), LABELS[rows], world)
        value.backward()
        world.average_gradients([weight])
        assert weight.grad is not None
        found[f"{name}.value"], found[f"{name}.grad"] = world.mean(value.detach()), weight.grad
    return found


@pytest.mark.slow
def test_two_workers_with_half_the_batch_equal_one_with_all_of_it(tmp_path: Path) -> None:
    run = runpy.run_path(str(Path(__file__).parents[1] / "two_workers.py"))["run"]
    one, two = cases(World()), run(__file__, tmp_path)
    for name, expected in one.items():
        for rank in range(2):
            torch.testing.assert_close(
                two[rank][name], expected, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
            )
        if name.endswith(".grad") and name != "constant.grad":
            assert expected.abs().max() > 0, name
