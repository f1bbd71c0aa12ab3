"""How many workers there is room for."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.trainers import capacity
from hasten.trainers.capacity import Growth
from hasten.trainers.errors import ConfigError

NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}, {"CPU": 2.5}]


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ({"CPU": 1.0}, 10),
        ({"CPU": 3.0}, 2),
        ({"CPU": 0.5}, 21),
        ({"CPU": 1.0, "GPU": 0.0}, 10),
        ({"CPU": 1.0, "GPU": 0.5}, 2),
        ({"CPU": 5.0}, 0),
        ({"CPU": 0.1}, 105),
    ],
)
def test_a_worker_lies_on_one_node(needs: dict[str, float], expected: int) -> None:
    assert capacity.room(NODES, needs) == expected


@pytest.mark.parametrize(
    ("workers", "needs", "words"),
    [
        (3, {"CPU": 4.0}, "3 of 4 CPUs each need 12; the cluster has 10.5"),
        (2, {"CPU": 1.0, "GPU": 1.0}, "2 of 1 GPUs each need 2; the cluster has 1"),
        (3, {"CPU": 3.0}, "3 of 3 CPUs each: the cluster's nodes have room for 2"),
        (1, {"CPU": 4.5, "GPU": 1.0}, "1 of 4.5 CPUs and 1 GPUs each: the cluster's nodes have room for 0"),
    ],
)
def test_what_never_fits_is_refused(workers: int, needs: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        capacity.require(workers, NODES, needs)
    assert caught.value.problem == words


@given(
    cpus=st.lists(st.integers(min_value=0, max_value=64), max_size=5),
    each=st.integers(min_value=1, max_value=8),
    workers=st.integers(min_value=1, max_value=64),
)
def test_what_is_not_refused_fits(cpus: list[int], each: int, workers: int) -> None:
    nodes = [{"CPU": float(count)} for count in cpus]
    room = sum(count // each for count in cpus)
    assert capacity.room(nodes, {"CPU": float(each)}) == room
    if workers <= room:
        capacity.require(workers, nodes, {"CPU": float(each)})
    else:
        with pytest.raises(ConfigError):
            capacity.require(workers, nodes, {"CPU": float(each)})


def test_a_run_starts_with_what_is_free_but_with_no_fewer_than_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity, "_SECONDS_TO_SETTLE", 0.0)
    monkeypatch.setattr(capacity, "_SECONDS_BETWEEN_QUESTIONS", 0.0)
    assert capacity.settled(lambda: 3, 1, 4) == 3
    assert capacity.settled(lambda: 0, 2, 4) == 2
    assert capacity.settled(lambda: 9, 2, 4) == 4
    assert capacity.settled(lambda: 0, 2, 2) == 2, "nobody has to look"


def test_a_node_is_up_while_it_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": server.getsockname()[1], "Alive": True}
        assert capacity.answers(node)
        assert not capacity.answers(node | {"Alive": False}), "Ray knows better"
    assert not capacity.answers(node)


def test_workers_grow_only_once_they_train_and_there_is_room() -> None:
    free = 0
    growth = Growth(lambda: free, 0.0)
    assert not growth.is_due(they_train=False)
    free = 1
    assert not growth.is_due(they_train=False), "the room that they wait for is free"
    assert not growth.is_due(they_train=True), "they have only begun"
    assert growth.is_due(they_train=True)
    free = 0
    assert not growth.is_due(they_train=True)
