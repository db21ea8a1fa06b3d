"""The leaderboard's order and columns, and what may be said of the winner."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from methods.data.budget import train_data
from methods.data.records import ArrayImages, ImageSet, LabelledSubset, Split
from methods.protocols.contract import Difference
from methods.tasks import Classification, FewShotTask, Task
from methods.training.clock import Fidelity
from orchestrator.care.records import Care
from orchestrator.engine import events, records
from orchestrator.engine.events import Ended, Event, Extended, Scored, Selected, Trained, TrialStarted
from orchestrator.engine.finalists import compare, finalists
from orchestrator.engine.history import History
from orchestrator.engine.records import Origin, Rung, Status, TrialSpec
from orchestrator.outputs.leaderboard import COLUMNS, leaderboard, ranked
from orchestrator.outputs.verdict import verdict

CLASSES, NEW = Classification(), FewShotTask()


def rung(value: float, epoch: int = 3, correct: list[bool] | None = None, scored_on: Any = "validation") -> Rung:
    bits = None if correct is None else np.array(correct)
    return Rung(epoch, value, 10 if correct is None else len(correct), 0, 1, scored_on, bits, 0.1)


def trial(
    number: int,
    method: str = "one",
    status: Status = "finished",
    scores: tuple[Rung, ...] = (),
    seconds: float = 1.0,
    purpose: Any = "search",
    repeat: int = 0,
    fold: int = 0,
    folds: int = 1,
    encoder: str = "",
    **values: Any,
) -> list[Event]:
    key = f"{number:04d}" + ("" if purpose == "search" else f"-{purpose}{fold or ''}-{repeat}")
    origin: Origin = "defaults" if number < 2 else "sampled"
    spec = TrialSpec(key, number, method, values, 0, purpose, origin, repeat, fold=fold, folds=folds, encoder=encoder)
    found: list[Event] = [TrialStarted(spec)]
    for one in scores:
        found += [Trained(key, one.epoch, seconds, {}), Scored(key, one, Fidelity("epochs", one.epoch))]
    if purpose == "refit":
        found.append(Trained(key, 3, seconds, {}))
    if status != "running":
        found.append(Ended(key, status, "" if status == "finished" else f"was {status}"))
    return found


def paired(a: Rung, b: Rung) -> Difference:
    """Two finalists of one score each."""
    some = history(
        *(trial(number, scores=(rung(0.5),)) for number in (0, 1)),
        Selected([0, 1]),
        *(trial(number, scores=(one,), purpose="fold") for number, one in enumerate((a, b))),
    )
    board = {f.trial.spec.trial: f for f in finalists(some)}
    return compare(board[0], board[1])


def history(*parts: list[Event] | Event) -> History:
    made = History()
    for part in parts:
        for event in part if isinstance(part, list) else [part]:
            made.add(event)
    return made


def on_test(number: int, value: float, purpose: str = "refit", repeat: int = 0) -> Event:
    return events.Tested(records.TestScore(f"{number:04d}-{purpose}-{repeat}", number, value, 200, value - 0.05, value + 0.05))


def whole_study() -> History:
    """Finalists 3 and 1; the search liked 3 better, the retraining 1."""
    return history(
        trial(0, "one", scores=(rung(0.5),), seconds=2, heat=0.5),
        trial(1, "two", scores=(rung(0.80),), seconds=3, ratio=0.75),
        trial(2, "one", "failed", heat=0.1),
        trial(3, "one", scores=(rung(0.81),), seconds=4, heat=0.2, kind="b"),
        trial(4, "one", "pruned", (rung(0.3, 1),), heat=0.3),
        trial(5, "two", "pruned", (rung(0.4, 1),), ratio=0.5),
        trial(6, "two", "pruned", (rung(0.2, 2),), ratio=0.4),
        trial(7, "two", scores=(rung(0.6),), seconds=9, ratio=0.3),
        trial(8, "two", "running", ratio=0.9),
        Selected([3, 1]),
        trial(3, "one", scores=(rung(0.70),), purpose="fold", repeat=0),
        trial(3, "one", "failed", (rung(0.01, 1),), purpose="fold", repeat=1),
        trial(1, "two", scores=(rung(0.78),), purpose="fold", repeat=0),
        trial(1, "two", scores=(rung(0.78),), purpose="fold", repeat=1),
        trial(1, "two", purpose="refit", repeat=0),
        trial(1, "two", purpose="refit", repeat=1),
        on_test(1, 0.75),
        on_test(1, 0.79, repeat=1),
        on_test(3, 0.71, "fold"),
    )


def test_finalists_come_by_their_folds_and_equals_as_they_were_tried() -> None:
    one, two = finalists(whole_study())
    assert (one.trial.spec.trial, two.trial.spec.trial) == (1, 3)
    assert one.val == pytest.approx(0.78)
    assert two.val == pytest.approx(0.70)
    assert one.test_values() == [0.75, 0.79]
    assert two.test_values() == [0.71]
    assert [t.spec.key for t in one.judged] == ["0001-fold-0", "0001-fold-1"]
    assert one.exported is not None
    assert two.exported is not None
    assert (one.exported.spec.key, two.exported.spec.key) == ("0001-refit-0", "0003-fold-0")
    assert [t.spec.key for t in one.tested] == ["0001-refit-0", "0001-refit-1"]
    tied = history(trial(0, scores=(rung(0.5),), seconds=9), trial(1, scores=(rung(0.5),), seconds=1), Selected([0, 1]))
    assert [f.trial.spec.trial for f in finalists(tied)] == [0, 1], "whichever was faster"
    assert finalists(tied)[0].exported is None
    assert finalists(tied)[0].val == 0.5


def test_ranks() -> None:
    """Finalists, then the finished by score, then the stopped by how far they came and by score, the failed last."""
    assert [t.spec.trial for t in ranked(whole_study())] == [1, 3, 7, 0, 6, 5, 4, 8, 2]


def test_before_the_end_the_finished_come_first() -> None:
    some = history(trial(0, scores=(rung(0.5),)), trial(1, "two", "failed"), trial(2, "two", scores=(rung(0.6),)))
    assert [t.spec.trial for t in ranked(some)] == [2, 0, 1]
    assert len(leaderboard(history(), [])) == 0


def test_columns_are_the_stable_interface() -> None:
    assert ",".join(COLUMNS) == "rank,trial,method,status,reason,epochs,seconds,val,test_mean,test_sd,test_n,tested"
    knobs = ["one.heat", "one.kind", "two.ratio"]
    frame = leaderboard(whole_study(), knobs)
    assert list(frame.columns) == [*COLUMNS, *knobs]
    assert list(frame["rank"]) == list(range(1, 10))
    by_trial = frame.set_index("trial")
    assert by_trial.loc[1, "test_mean"] == pytest.approx(0.77)
    assert by_trial.loc[1, "test_sd"] == pytest.approx(math.sqrt(2) * 0.02)
    assert by_trial.loc[1, "test_n"] == 2
    assert by_trial.loc[3, "test_mean"] == pytest.approx(0.71)
    assert by_trial["test_sd"].isna()[3]
    assert by_trial.loc[[0, 2, 4, 5, 6, 7, 8], ["test_mean", "test_sd", "test_n"]].isna().all(axis=None)
    assert by_trial.loc[1, "val"] == 0.80
    assert by_trial["val"].isna()[2]
    assert (by_trial.loc[2, "status"], by_trial.loc[2, "reason"]) == ("failed", "was failed")
    assert (by_trial.loc[3, "epochs"], by_trial.loc[4, "epochs"], by_trial.loc[3, "seconds"]) == (3, 1, 4)
    assert (by_trial.loc[3, "one.heat"], by_trial.loc[3, "one.kind"]) == (0.2, "b")
    assert by_trial["two.ratio"].isna()[3]
    assert by_trial["one.heat"].isna()[1]
    text = frame.to_csv(index=False)
    assert text.splitlines()[0] == ",".join([*COLUMNS, *knobs])
    assert ",2," in text.splitlines()[1], "test_n is a whole number in the file"


answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)


@given(answers)
def test_paired_against_a_plain_loop(both: list[tuple[bool, bool]]) -> None:
    found = paired(rung(0, correct=[a for a, _ in both]), rung(0, correct=[b for _, b in both]))
    assert found is not None
    n = len(both)
    # Bonett and Price (2012): one win and one loss more, n + 2 images.
    wins, losses = (
        (sum(1 for a, b in both if a and not b) + 1) / (n + 2),
        (sum(1 for a, b in both if b and not a) + 1) / (n + 2),
    )
    half = float(stats.norm.ppf(0.975)) * math.sqrt((wins + losses - (wins - losses) ** 2) / (n + 2))
    assert found.mean == pytest.approx(sum(int(a) - int(b) for a, b in both) / n, abs=1e-12)
    limits = (max(wins - losses - half, -1), min(wins - losses + half, 1))
    assert (found.low, found.high) == pytest.approx(limits, abs=1e-12)
    assert found.n == n
    reverse = paired(rung(0, correct=[b for _, b in both]), rung(0, correct=[a for a, _ in both]))
    assert reverse is not None
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low))


def test_episodes_pair_by_their_accuracies() -> None:
    a, b = (rung(0, correct=[True] * 4, scored_on="episodes") for _ in range(2))
    a, b = (
        dataclasses.replace(r, units=np.array(v, np.float32)) for r, v in ((a, [0.5, 0.75, 1, 0.5]), (b, [0.25, 0.5, 1, 0.5]))
    )
    found = paired(a, b)
    half = float(stats.t.ppf(0.975, 3)) * float(np.std([0.25, 0.25, 0, 0], ddof=1)) / 2
    assert (found.mean, found.low, found.high) == pytest.approx((0.125, 0.125 - half, 0.125 + half))


def contest(a: list[list[bool]], b: list[list[bool]]) -> History:
    """Two finalists' answers, seed by seed; trial 0 is the default."""
    mean = np.mean
    return history(
        trial(0, "one", scores=(rung(float(mean(a[0])), correct=a[0]),)),
        trial(1, "two", scores=(rung(float(mean(b[0])), correct=b[0]),)),
        Selected([0, 1]),
        *(trial(0, "one", scores=(rung(float(mean(x)), correct=x),), purpose="fold", repeat=i) for i, x in enumerate(a)),
        *(trial(1, "two", scores=(rung(float(mean(x)), correct=x),), purpose="fold", repeat=i) for i, x in enumerate(b)),
    )


def test_finalists_are_compared_image_by_image_over_all_seeds() -> None:
    a = [[True] * 30 + [False] * 10, [True] * 32 + [False] * 8]
    b = [[True] * 20 + [False] * 20, [True] * 18 + [False] * 22]
    board = finalists(contest(a, b))
    gap = compare(board[0], board[1])
    each = [(a[0][i] + a[1][i]) / 2 - (b[0][i] + b[1][i]) / 2 for i in range(40)]
    half = float(stats.t.ppf(0.975, 39)) * float(np.std(each, ddof=1)) / math.sqrt(40)
    expected = float(np.mean(each))
    assert (gap.mean, gap.low, gap.high, gap.n) == pytest.approx((expected, expected - half, expected + half, 40))
    assert gap.mean == pytest.approx(board[0].val - board[1].val)


def test_scores_that_are_no_means_pair_by_what_judged() -> None:
    ours, theirs = [0.80, 0.82, 0.81], [0.60, 0.63, 0.61]
    some = history(
        trial(0, scores=(rung(0.8),)),
        trial(1, "two", scores=(rung(0.6),)),
        Selected([0, 1]),
        *(trial(0, scores=(rung(v),), purpose="fold", repeat=i) for i, v in enumerate(ours)),
        *(trial(1, "two", scores=(rung(v),), purpose="fold", repeat=i) for i, v in enumerate(theirs)),
    )
    gap = compare(*finalists(some))
    each = np.array(ours) - np.array(theirs)
    half = stats.t.ppf(0.975, 2) * each.std(ddof=1) / math.sqrt(3)
    assert (gap.mean, gap.low, gap.high, gap.n) == pytest.approx((each.mean(), each.mean() - half, each.mean() + half, 3))


def test_folds_overlap_so_their_interval_is_wider() -> None:
    """Nadeau & Bengio 2003: the variance of the mean over J of K folds is (1/J + 1/(K-1)) times an average fold's."""
    random = np.random.default_rng(0)
    answers = {who: [random.random(50) < p for _ in range(4)] for who, p in (("one", 0.7), ("two", 0.6))}
    some = [Selected([0, 1], 5, 4)]
    for number, (who, folds) in enumerate(answers.items()):
        some += trial(number, who, scores=(rung(0.5),))
        for fold, correct in enumerate(folds):
            score = rung(float(correct.mean()), correct=correct.tolist())
            some += trial(number, who, scores=(score,), purpose="fold", repeat=0, fold=fold, folds=5)
    gap = compare(*finalists(history(*some)))
    each = np.concatenate(answers["one"]).astype(float) - np.concatenate(answers["two"])
    more, less = ((each > 0).sum() + 1) / 202, ((each < 0).sum() + 1) / 202
    plain = 1.959964 * math.sqrt((more + less - (more - less) ** 2) / 202)
    assert gap.n == 200
    assert gap.mean == pytest.approx(each.mean())
    assert gap.high - gap.mean == pytest.approx((more - less + plain - gap.mean) * math.sqrt(1 + 4 / 4), rel=1e-5)


def test_one_seed_each_says_nothing() -> None:
    some = history(
        trial(0, scores=(rung(0.8),)),
        trial(1, "two", scores=(rung(0.6),)),
        Selected([0, 1]),
        trial(0, scores=(rung(0.8),), purpose="fold"),
        trial(1, "two", scores=(rung(0.6),), purpose="fold"),
    )
    gap = compare(*finalists(some))
    assert gap.mean == pytest.approx(0.2)
    assert gap.low < 0 < gap.high
    said = said_of(some)
    assert "It is not distinguishable from the runner-up, two (trial 1): +20.0% (too few for an interval) on 1 seeds" in said


def divided(**changes: Any) -> Split:
    """Data in parts: by default with a test set of the user's own."""
    data = ImageSet(ArrayImages(np.zeros((1, 8, 8, 1), np.uint8)), np.zeros(1, dtype=np.int64), ("a",))
    part = LabelledSubset(data, np.arange(1), data.label)
    return dataclasses.replace(Split(train_data(data, data.label), part, part, part, holdout=False), **changes)


FACTS, EPISODES = Classification().facts(divided()), FewShotTask().facts(divided())


def said_of(some: History, task: Task = CLASSES, **changes: Any) -> str:
    """The verdict of a task where the data was divided into these parts."""
    return " ".join(verdict(some, task.facts(divided(**changes))).sentences)


def test_a_clear_winner_is_said_to_be_ahead() -> None:
    said = said_of(contest([[True] * 38 + [False] * 2] * 2, [[True] * 10 + [False] * 30] * 2))
    assert "Winner: one (trial 0), chosen by validation: 95.0% over 2 seed(s)." in said
    assert "It is ahead of the runner-up, two (trial 1): +70.0% [" in said
    assert "distinguishable" not in said
    assert "The winner is its method's default configuration" in said
    assert "learnt nothing from the labels that judged it" in said
    assert "does not include the luck of which images were labelled" in said


def test_what_was_found_in_the_data_follows_the_test() -> None:
    some = contest([[True] * 38 + [False] * 2] * 2, [[True] * 10 + [False] * 30] * 2)
    plain = verdict(some, FACTS).sentences
    said = verdict(some, FACTS, Care("x", 30, 20, {"leaks": ()}, past="It may have seen them.")).sentences
    assert [each for each in said if each not in plain] == [
        "No test image is a copy of a training image, exactly or nearly.",
        "It may have seen them.",
    ]


def test_a_narrow_winner_is_said_to_be_indistinguishable() -> None:
    said = said_of(contest([[True, False] * 20 + [True]] * 2, [[False, True] * 20 + [False]] * 2))
    assert "It is not distinguishable from the runner-up, two (trial 1): " in said
    assert "ahead" not in said


def test_the_test_score_names_its_origin_and_the_refit_is_told() -> None:
    some = whole_study()
    said = said_of(some)
    assert "Winner: two (trial 1), chosen by validation: 78.0% over 2 seed(s)." in said
    assert "Test: 77.0%, sd 2.8% over 2 seed(s), 200 images (your test set)" in said
    assert "70.0% to 80.0%" in said
    assert "trained on the whole label budget, validation labels included" in said
    assert "held out from your data" in said_of(some, holdout=True)


def test_of_new_classes_it_speaks_of_episodes_and_classes() -> None:
    data = ImageSet(ArrayImages(np.zeros((1, 8, 8, 1), np.uint8)), np.zeros(1, dtype=np.int64), ("b",))
    some = contest([[True] * 38 + [False] * 2] * 2, [[True] * 10 + [False] * 30] * 2)
    new = LabelledSubset(data, np.arange(1), data.label)
    said = said_of(some, NEW, validation=new)
    assert "trained without the classes that validated" in said
    assert "the luck of which classes validated." in said
    assert "label" not in said
    assert "the luck of which classes validated and which classes were held out." in said_of(
        some, NEW, validation=new, holdout=True
    )
    assert "the luck of which classes were held out." in said_of(some, NEW, validation=new, holdout=True, folds=(None, None))
    assert "luck" not in said_of(some, NEW, validation=new, test=None, folds=(None, None))


def test_a_cross_validation_without_a_test_says_so() -> None:
    some = contest([[True] * 38 + [False] * 2] * 2, [[True] * 10 + [False] * 30] * 2)
    said = said_of(some, NEW, test=None, folds=(None, None, None))
    assert "95.0% over 2 seed(s), each the mean over 3 groups left out in turn." in said
    assert "No test was made (test: none)." in said
    assert "No test was made" not in said_of(some)
    assert "left out in turn" not in said_of(some)


def against_defaults(default: list[Event], winner: list[bool]) -> str:
    value = float(np.mean(winner))
    return said_of(
        history(
            default,
            trial(1, "two", scores=(rung(0.1),)),
            trial(2, "one", scores=(rung(value, correct=winner),)),
            Selected([2]),
            trial(2, "one", scores=(rung(value, correct=winner),), purpose="fold"),
        )
    )


def test_the_winner_is_held_against_its_methods_defaults() -> None:
    good, bad = [True] * 38 + [False] * 2, [True] * 8 + [False] * 32
    assert "Against its method's defaults: +75.0% [" in against_defaults(trial(0, scores=(rung(0.2, correct=bad),)), good)
    almost = [False] + good[1:]
    text = against_defaults(trial(0, scores=(rung(0.9, correct=almost),)), good)
    assert "It is not distinguishable from its method's defaults: +2.5% [" in text


@pytest.mark.parametrize("scores", [(), (rung(0.9, 1, [True] * 40),)])
def test_defaults_that_failed_are_not_compared_with(scores: tuple[Rung, ...]) -> None:
    text = against_defaults(trial(0, "one", "failed", scores), [True] * 30 + [False] * 10)
    assert "Its method's defaults were not scored on the same images." in text
    assert "default configuration" not in text


def test_a_study_without_a_finished_trial_says_so() -> None:
    some = history(trial(0, "one", "failed"), Selected([]))
    assert said_of(some) == "No trial finished, so there is no winner; the reasons stand in the leaderboard."
    assert len(leaderboard(some, [])) == 1


def test_more_trials_take_the_finalists_back() -> None:
    some = whole_study()
    some.add(Extended(20))
    assert finalists(some) == []
    assert leaderboard(some, [])["test_n"].isna().all()


def compared_encoders() -> History:
    """Three encoders; trial 1 is a default with the first, 3 the same method's default with another, which wins."""
    answers = [[True] * 10 + [False] * 10, [True] * 18 + [False] * 2]
    one, two = (rung(float(np.mean(each)), correct=each) for each in answers)
    return history(
        trial(0, "one", scores=(one,), encoder="lite0", heat=0.5),
        trial(1, "two", scores=(one,), encoder="lite0", ratio=0.75),
        trial(2, "two", "failed", encoder="conv4", ratio=0.75),
        trial(3, "two", scores=(two,), encoder="lite0 from none", ratio=0.5),
        Selected([3, 0]),
        trial(3, "two", scores=(two,), purpose="fold", encoder="lite0 from none", ratio=0.5),
        trial(0, "one", scores=(one,), purpose="fold", encoder="lite0", heat=0.5),
    )


def test_the_encoder_stands_on_the_leaderboard_where_several_are_compared() -> None:
    frame = leaderboard(compared_encoders(), ["one.heat", "two.ratio"])
    assert list(frame.columns) == [*COLUMNS, "encoder", "one.heat", "two.ratio"]
    assert dict(zip(frame["trial"], frame["encoder"], strict=True)) == {
        **{3: "lite0 from none", 0: "lite0"},
        **{1: "lite0", 2: "conv4"},
    }
    assert "encoder" not in leaderboard(whole_study(), []).columns


def test_the_verdict_names_encoders_and_compares_them() -> None:
    text = said_of(compared_encoders())
    assert "Winner: two with lite0 from none (trial 3)" in text
    assert "the runner-up, one with lite0 (trial 0)" in text
    assert "Against its method's defaults (with lite0): +40.0%" in text
    assert (
        "The search's best validation score by encoder: lite0: 50.0% (2 trials); conv4: none finished (1 trial);"
        " lite0 from none: 90.0% (1 trial)." in text
    )
    assert "by encoder" not in said_of(whole_study())


def by_folds(baseline: int | None, ours: list[bool], theirs: list[bool]) -> History:
    """Two finalists, ``supervised`` the second, each judged by two folds of half of the labels."""
    some: list[Any] = [*trial(0, "one", scores=(rung(0.5),)), *trial(1, "supervised", scores=(rung(0.5),))]
    some.append(Selected([0, 1], 2, 2, False, baseline))
    for number, (name, answers) in enumerate((("one", ours), ("supervised", theirs))):
        half = len(answers) // 2
        for fold, part in enumerate((answers[:half], answers[half:])):
            score = rung(sum(part) / half, correct=part)
            some += trial(number, name, scores=(score,), purpose="fold", fold=fold, folds=2)
    return history(*some)


def said_of_forty(some: History) -> str:
    return " ".join(verdict(some, dataclasses.replace(FACTS, labels=40)).sentences)


def test_the_baseline_is_passed_by_what_is_clearly_better_alone() -> None:
    """One standard error of the paired difference, with a win more for either side, as a plain loop has it."""
    right = [True] * 20 + [False] * 20
    for more, less in ((1, 0), (2, 0), (4, 0), (4, 3), (9, 4)):
        ours = [*right]
        for i in range(more):
            ours[20 + i] = True
        for i in range(less):
            ours[i] = False
        each = [1.0, -1.0, *(float(a) - float(b) for a, b in zip(ours, right, strict=True))]
        mean = sum(each) / 42
        error = math.sqrt(sum((e - mean) ** 2 for e in each) / 42 / 42)
        winner = finalists(by_folds(1, ours, right))[0].trial.spec.method
        assert winner == ("one" if mean > error else "supervised"), (more, less)
        assert finalists(by_folds(None, ours, right))[0].trial.spec.method == "one"
    few_more = by_folds(1, [*right[:17], *[False] * 3, *[True] * 4, *[False] * 16], right)
    assert finalists(few_more)[0].trial.spec.method == "supervised"
    assert "one (trial 0) scored higher, but by no more than one standard error: +2.5%" in said_of_forty(few_more)
    assert finalists(by_folds(1, [not each for each in right], right))[0].trial.spec.method == "supervised"


def test_without_an_error_the_score_decides_over_the_baseline() -> None:
    """One score each, of which nothing says how far chance moves it."""
    for ours, winner in ((0.9, "one"), (0.5, "supervised")):
        some = [
            *trial(0, "one", scores=(rung(0.5),)),
            *trial(1, "supervised", scores=(rung(0.5),)),
            Selected([0, 1], baseline=1),
        ]
        for number, (name, value) in enumerate((("one", ours), ("supervised", 0.6))):
            some += trial(number, name, scores=(rung(value),), purpose="fold")
        assert finalists(history(*some))[0].trial.spec.method == winner


def test_who_was_not_tested_is_named() -> None:
    some = by_folds(None, [True] * 40, [False] * 40)
    assert "Not tested" not in said_of_forty(some), "no test was opened"
    some.add(events.Tested(records.TestScore("0000-fold-0", 0, 0.9, 100, 0.8, 0.95)))
    assert "Not tested within the study's time" not in said_of_forty(some), "no checkpoint is left that could be asked"
    some.add(events.Reached("0001-fold-0", Fidelity("epochs", 3), "trials/0001/checkpoint-3.pt"))
    assert "Not tested within the study's time: supervised (trial 1)." in said_of_forty(some)
    some.add(events.Tested(records.TestScore("0001-fold-0", 1, 0.5, 100, 0.4, 0.6)))
    assert "Not tested" not in said_of_forty(some)


def test_a_baseline_that_a_race_dropped_passes_nobody() -> None:
    some = by_folds(1, [True] * 40, [False] * 40)
    assert [f.trial.spec.method for f in finalists(some)] == ["one", "supervised"]
    assert "standard error" not in said_of_forty(some)
