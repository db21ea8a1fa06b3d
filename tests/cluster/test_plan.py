from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.machine import Node
from cluster.plan import DRIVER_CPUS, ResourcePlan, plan_resources

cpu_nodes = st.lists(st.integers(1, 96).map(Node), min_size=1, max_size=6)
gpu_nodes = st.lists(st.builds(Node, cpus=st.integers(1, 128), gpus=st.integers(1, 8)), min_size=1, max_size=6)


def bears_everything(plan: ResourcePlan, nodes: list[Node], room: list[int]) -> None:
    """Whatever order Ray places in: a node full of workers still takes every driver, and all workers find room."""
    workers = plan.slots * plan.workers_per_trial
    assert sum(room) >= workers >= 1
    drivers = DRIVER_CPUS * plan.slots if plan.workers_per_trial > 1 else 0.0
    for node, fit in zip(nodes, room, strict=True):
        if fit:
            assert min(fit, workers) * plan.cpus_per_worker + drivers <= node.cpus + 1e-6


@given(nodes=cpu_nodes, workers=st.integers(1, 8), slots=st.none() | st.integers(1, 16))
def test_cpu_plans_never_promise_more_than_there_is(nodes: list[Node], workers: int, slots: int | None) -> None:
    assume((slots or 1) * workers <= sum(node.cpus for node in nodes))
    plan = plan_resources(nodes, workers_per_trial=workers, slots=slots)
    assert slots is None or plan.slots == slots
    assert plan.workers_per_trial == workers
    threads = plan.threads_per_worker
    assert plan.slots * workers * threads <= plan.total_cpus
    bears_everything(plan, nodes, [int(node.cpus) // threads for node in nodes])
    assert threads - 0.5 <= plan.cpus_per_worker <= threads
    # One thread more per worker would not fit: no CPU is given away for nothing.
    assert sum(int(node.cpus) // (threads + 1) for node in nodes) < plan.slots * workers


@given(nodes=gpu_nodes, workers=st.integers(1, 4))
def test_gpu_plans_take_every_gpu(nodes: list[Node], workers: int) -> None:
    gpus = sum(int(node.gpus) for node in nodes)
    assume(workers <= gpus)
    plan = plan_resources(nodes, workers_per_trial=workers)
    assert plan.slots == gpus // workers
    assert plan.gpus_per_worker == 1
    assert plan.threads_per_worker >= 1
    bears_everything(plan, nodes, [int(node.gpus) for node in nodes])


@given(nodes=gpu_nodes, parts=st.integers(1, 10))
def test_shares_of_a_gpu_lie_on_one_gpu(nodes: list[Node], parts: int) -> None:
    plan = plan_resources(nodes, gpus_per_worker=1 / parts)
    assert plan.slots == parts * sum(int(node.gpus) for node in nodes)
    assert plan.slots * plan.gpus_per_worker <= plan.total_gpus + 1e-6
    bears_everything(plan, nodes, [parts * int(node.gpus) for node in nodes])


@given(nodes=cpu_nodes, trials=st.integers(1, 8))
def test_no_more_slots_than_trials(nodes: list[Node], trials: int) -> None:
    plan = plan_resources(nodes, trials=trials)
    assert plan.slots <= trials
    assert plan.slots * plan.threads_per_worker <= plan.total_cpus


@pytest.mark.parametrize(("cpus", "slots", "threads"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (8, 4, 2), (16, 8, 2)])
def test_the_default_on_a_laptop(cpus: int, slots: int, threads: int) -> None:
    plan = plan_resources([Node(cpus)])
    assert (plan.slots, plan.threads_per_worker, plan.cpus_per_worker) == (slots, threads, threads)
    assert plan.trial_resources == {"CPU": float(threads)}


def test_a_trial_on_two_workers_leaves_its_driver_room() -> None:
    plan = plan_resources([Node(2)], workers_per_trial=2)
    assert plan.slots == 1
    assert plan.trial_resources == {"CPU": DRIVER_CPUS}
    assert plan.worker_resources == {"CPU": 0.99}


def test_a_trial_may_spread_over_nodes_but_a_worker_may_not() -> None:
    assert plan_resources([Node(1), Node(1)], workers_per_trial=2).slots == 1
    with pytest.raises(ClusterError, match="1 worker of 2 threads"):
        plan_resources([Node(1), Node(1)], threads_per_worker=2)


def test_a_head_node_without_cpus_does_no_work() -> None:
    plan = plan_resources([Node(0), Node(8)], workers_per_trial=4)
    assert (plan.slots, plan.threads_per_worker) == (2, 1)


def test_gpus_can_be_left_alone() -> None:
    plan = plan_resources([Node(8, 2)], gpus_per_worker=0)
    assert (plan.slots, plan.gpus_per_worker, plan.worker_resources) == (4, 0, {"CPU": 2.0})


@pytest.mark.parametrize(
    ("nodes", "wishes", "line"),
    [
        ([Node(2)], {}, "2 trials at a time on 2 CPUs: 1 thread each"),
        ([Node(2)], {"slots": 1}, "1 trial at a time on 2 CPUs: 2 threads each"),
        ([Node(1)], {}, "1 trial at a time on 1 CPU: 1 thread each"),
        ([Node(2)], {"workers_per_trial": 2}, "1 trial at a time on 2 CPUs: 2 workers each, 1 thread per worker"),
        (
            [Node(16, 4), Node(16, 4)],
            {"workers_per_trial": 2},
            "4 trials at a time on 2 nodes with 32 CPUs and 8 GPUs: 2 workers each, 1 GPU and 4 threads per worker",
        ),
        ([Node(8, 1)], {"gpus_per_worker": 0.5}, "2 trials at a time on 8 CPUs and 1 GPU: 0.5 GPU and 4 threads each"),
    ],
)
def test_the_line_shown_before_the_start(nodes: list[Node], wishes: dict[str, int], line: str) -> None:
    assert plan_resources(nodes, **wishes).describe() == line  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        (
            {"workers_per_trial": 3},
            r"one trial with 3 workers .* there is room for 2 \(2 CPUs\); ask for fewer workers, or join",
        ),
        ({"slots": 2, "workers_per_trial": 2}, r"2 trials .* needs room for 4, .* fewer workers or trials at a time"),
        ({"slots": 3}, "3 trials at a time"),
        ({"threads_per_worker": 4}, "1 worker of 4 threads"),
        ({"gpus_per_worker": 1}, r"1 worker of 1 GPU .* room for 0 \(0 GPUs\)"),
        ({"workers_per_trial": 0}, "workers_per_trial must be at least 1, got 0"),
        ({"slots": -1}, "slots must be at least 1, got -1"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker must be .* got 1.5"),
        ({"gpus_per_worker": -1}, "gpus_per_worker must be .* got -1"),
        ({"gpus_per_worker": float("nan")}, "gpus_per_worker must be .* got nan"),
        ({"gpus_per_worker": 0.0001}, "at least 0.001"),
        ({"gpus_per_worker": 0.5, "workers_per_trial": 2}, "cannot share a GPU"),
    ],
)
def test_wishes_that_cannot_be_met(wishes: dict[str, float], says: str) -> None:
    with pytest.raises(ClusterError, match=says) as caught:
        plan_resources([Node(2)], **wishes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
