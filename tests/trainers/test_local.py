from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.trainers import local
from hasten.trainers.errors import ConfigError
from hasten.trainers.specs import RunSpec
from hasten.trainers.worker import Worker


def test_this_process_alone(spec_of: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with local.worker(spec_of()) as worker:
        assert (worker.rank, worker.world_size, worker.is_first) == (0, 1, True)
        assert worker.agree("yes") == "yes"
        assert worker.agree(None) is None


def test_workers_that_nobody_started(
    spec_of: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError) as caught, local.worker(spec_of({"execution.workers": 2})):
        pass
    assert caught.value.subject == "execution.workers"
    assert "ray" in caught.value.remedy
    assert "torchrun" in caught.value.remedy


@pytest.mark.parametrize(("count", "world_size"), [(0, 1), (10, 1), (10, 3), (2, 4), (64, 2)])
def test_shares_are_a_partition_that_differs_by_one_at_most(count: int, world_size: int) -> None:
    workers = [Worker(rank=rank, world_size=world_size) for rank in range(world_size)]
    shares = [list(range(count))[worker.share(count)] for worker in workers]
    assert sorted(place for share in shares for place in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
