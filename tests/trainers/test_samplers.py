"""Draws against their densities, on one rank and on several; adaptive samplers against plain Python."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from hasten.trainers import densities, randomness, samplers
from hasten.trainers.curriculum import Clusters, Curriculum, adaptive, pmf, stages
from hasten.trainers.diffusion import Ddpm, Edm, alphas_bar
from hasten.trainers.samplers import TimestepSampler
from hasten.trainers.worker import Worker

SMALLEST_P = 1e-3  # seeds are fixed: a test below it fails always or never
CPU = torch.device("cpu")
LINEAR = alphas_bar(Ddpm(kind="ddpm", schedule="linear"))
COARSE = alphas_bar(Ddpm(kind="ddpm", schedule="cosine", timesteps=60))
EDM = alphas_bar(Edm(kind="edm", timesteps=200))
EVERY_KIND: dict[str, dict[str, Any]] = {
    "uniform": {},
    "clts": {"sigma": 0.2},
    "reverse": {"sigma": 0.2},
    "static": {"sigma": 0.2},
    "shuffled": {"sigma": 0.2},
    "return": {"sigma": 0.2},
    "two_phase": {},
    "speed": {},
    "edm_lognormal": {},
    "logit_normal": {},
    "mode": {},
    "cosmap": {},
    "beta": {},
    "laplace": {},
    "second_moment": {"history": 3},
    "clusters": {"clusters": 5},
}
ADAPTER: TypeAdapter[Curriculum] = TypeAdapter(Curriculum)


@pytest.fixture(autouse=True, scope="module")
def _as_in_a_run() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def spec(kind: str, **fields: Any) -> Curriculum:
    return ADAPTER.validate_python({"kind": kind, **EVERY_KIND[kind], **fields})


def build(curriculum: Curriculum, signal: np.ndarray = COARSE) -> TimestepSampler:
    return samplers.build(curriculum, signal, device=CPU, worker=Worker())


def loss_of(t: np.ndarray, images: np.ndarray) -> torch.Tensor:
    """A loss that depends on the level, and on the image by chance; float32 as in training."""
    noisy = np.exp(0.5 * randomness.noise(3, "loss", images, (1,))[:, 0].astype(np.float64))
    return torch.from_numpy(((1.0 + t) / 60.0 * noisy).astype(np.float32))


def trained(
    curriculum: Curriculum, signal: np.ndarray = COARSE, *, num: int = 40, batch: int = 32
) -> TimestepSampler:
    """A sampler that has seen ``num`` batches."""
    sampler = build(curriculum, signal)
    advance(sampler, 0, num, batch)
    return sampler


def advance(sampler: TimestepSampler, first: int, last: int, batch: int) -> list[torch.Tensor]:
    """Batches ``first`` to ``last`` of a run of 100; their draws."""
    places, draws = np.arange(batch), []
    for step in range(first, last):
        images = step * batch + places
        u = torch.from_numpy(randomness.stratified(1, "t", images, places, batch))
        t, _ = sampler.draw(step / 100, u)
        sampler.observe(t, loss_of(t.numpy(), images), places=places, batch=batch, total=100 * batch)
        draws.append(t)
    return draws


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """The p-value of ``counts`` under the density ``p``, neighbouring levels joined until each expects 10."""
    assert counts[p == 0.0].sum() == 0
    expected = p * counts.sum()
    bins = np.minimum((np.cumsum(expected) / 10.0).astype(int), int(expected.sum() / 10.0) - 1)
    seen, awaited = np.bincount(bins, counts), np.bincount(bins, expected)
    seen, awaited = seen[awaited > 0.0], awaited[awaited > 0.0]
    return float(stats.chi2.sf(((seen - awaited) ** 2 / awaited).sum(), len(seen) - 1))


def test_every_kind_is_tested_here() -> None:
    assert ADAPTER.json_schema()["discriminator"]["mapping"].keys() == EVERY_KIND.keys()


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("progress", [-0.5, 0.0, 0.4, 0.9, 1.5])
def test_independent_draws_follow_the_density(kind: str, progress: float) -> None:
    """Each draw, also one of an adaptive sampler that has learnt; one that interpolates samples fails."""
    curriculum = spec(kind)
    u = torch.from_numpy(randomness.uniform(2, "t", np.arange(30_000)))
    for signal in (COARSE, EDM):
        sampler = build(curriculum, signal)
        np.testing.assert_allclose(sampler.pmf(progress), pmf(curriculum, progress, signal), rtol=1e-10)
        if adaptive(curriculum):
            sampler = trained(curriculum, signal)
        t, _ = sampler.draw(progress, u)
        assert t.dtype == torch.int64
        p = sampler.pmf(progress).numpy()
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert chi_square(np.bincount(t, minlength=len(signal)), p) > SMALLEST_P


def test_chi_square_can_fail() -> None:
    """Interpolating samples instead of densities is another law, as is clamping to the ends."""
    curriculum = spec("clts")
    u, v = (torch.from_numpy(randomness.uniform(2, name, np.arange(30_000))) for name in ("t", "v"))
    uniform, _ = build(spec("uniform")).draw(0.5, u)
    gaussian, _ = build(curriculum).draw(1.0, v)
    between = (0.5 * uniform + 0.5 * gaussian).long()
    assert chi_square(np.bincount(between, minlength=60), pmf(curriculum, 0.5, COARSE)) < 1e-9


@pytest.mark.parametrize("kind", [kind for kind in EVERY_KIND if kind not in ("second_moment", "clusters")])
def test_scheduled_draws_are_numpys_inverse_bit_for_bit(kind: str) -> None:
    curriculum = spec(kind)
    sampler = build(curriculum, LINEAR)
    ends = np.array([0.0, 1.0 - 2.0**-53])
    for progress in (0.0, 0.0, 0.3, 0.55, 0.8, 0.8, 1.0, 0.1):
        cdf = np.cumsum(pmf(curriculum, progress, LINEAR))
        # On the borders too, where one bit of the distribution function decides.
        u = np.concatenate([randomness.uniform(2, "t", np.arange(2000)), cdf[cdf < 1.0], ends])
        expected = np.minimum(np.searchsorted(cdf, u, side="right"), len(cdf) - 1)
        t, correction = sampler.draw(progress, torch.from_numpy(u))
        np.testing.assert_array_equal(t, expected)
        assert correction is None
        np.testing.assert_array_equal(sampler.pmf(progress), pmf(curriculum, progress, LINEAR))
    assert sampler.state_dict() == {}


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("batch", [7, 60, 256])
def test_stratified_draws_fill_every_stratum_at_every_world_size(kind: str, batch: int) -> None:
    """Up to any level lie as many of the batch as the distribution function says, rounded up or down."""
    curriculum = spec(kind)
    sampler = trained(curriculum) if adaptive(curriculum) else build(curriculum)
    p = sampler.pmf(0.7).numpy()
    for step in range(3):
        whole = np.full(batch, -1)
        for world_size in (1, 2, 3):
            parts = np.full(batch, -1)
            for rank in range(world_size):
                places = np.arange(batch)[rank::world_size]
                u = randomness.stratified(5, "t", step * batch + places, places, batch)
                parts[places] = sampler.draw(0.7, torch.from_numpy(u))[0]
                if (
                    batch % world_size == 0
                ):  # a rank's own images are spread as evenly as a batch of their own
                    assert_even(parts[places], p)
            if world_size == 1:
                whole = parts
            np.testing.assert_array_equal(parts, whole)
        assert_even(whole, p)


def assert_even(t: np.ndarray, p: np.ndarray) -> None:
    below = np.cumsum(np.bincount(t, minlength=len(p)))
    exact = np.cumsum(p) * len(t)
    assert (below >= np.floor(exact - 1e-6)).all()
    assert (below <= np.ceil(exact + 1e-6)).all()


@pytest.mark.parametrize("signal", [LINEAR, COARSE, EDM], ids=["linear", "coarse", "edm"])
def test_realised_marginal_of_speed_is_that_of_its_pairs(signal: np.ndarray) -> None:
    """Simulated as its code draws: half a batch, and the mirror image of each."""
    plain = pmf(spec("speed", pairing=False), 0.0, signal)
    generator = np.random.default_rng(4)
    first = generator.choice(len(signal), size=(5000, 8), p=plain)
    middle = densities.pivot(signal)
    second = np.where(first < middle, middle - first, first - middle)
    counts = np.bincount(np.concatenate([first.ravel(), second.ravel()]), minlength=len(signal))
    # Partners are not independent, so a count varies up to twice as much: half of it is as if they were.
    assert chi_square(counts / 2, pmf(spec("speed", pairing=True), 0.0, signal)) > SMALLEST_P
    assert chi_square(counts / 2, plain) < 1e-9


def plain_second_moment(
    rings: list[list[float]], t: np.ndarray, losses: torch.Tensor, history: int
) -> np.ndarray:
    """One image after another; the density afterwards."""
    for level, loss in zip(t.tolist(), losses.tolist(), strict=True):
        rings[level] = [*rings[level], loss][-history:]
    if any(len(ring) < history for ring in rings):
        return np.full(len(rings), 1.0 / len(rings))
    moments = np.array([np.sqrt(np.mean(np.square(ring))) for ring in rings])
    return 0.9 * moments / moments.sum() + 0.1 / len(rings)


@pytest.mark.parametrize("history", [1, 3, 10])
def test_second_moment_learns_as_if_images_came_one_by_one(history: int) -> None:
    """Also with more images of a level in a batch than its history holds."""
    num, generator = 6, np.random.default_rng(history)
    sampler = build(spec("second_moment", history=history, floor=0.1), COARSE[:num])
    rings: list[list[float]] = [[] for _ in range(num)]
    seen = {"uniform": 0, "learnt": 0, "overflows": 0}
    # Small batches at first, which leave levels without a history; then ones that overflow it.
    for batch in [*[1] * 10, *generator.integers(1, 60, size=50)]:
        # Levels are far from even, so that some fill long before others.
        t = np.minimum(generator.geometric(0.4, size=batch) - 1, num - 1)
        losses = torch.from_numpy(generator.lognormal(size=batch).astype(np.float32))
        places = generator.permutation(batch)  # a rank may have its images in any order
        sampler.observe(
            torch.from_numpy(t[places]), losses[places], places=places, batch=int(batch), total=10_000
        )
        expected = plain_second_moment(rings, t, losses, history)
        np.testing.assert_allclose(sampler.pmf(0.5), expected, rtol=1e-10)
        seen["uniform" if np.ptp(expected) == 0.0 else "learnt"] += 1
        seen["overflows"] += int(np.bincount(t).max() > history)
    assert min(seen.values()) > 0, seen


class NoPlaceTwice(TorchDispatchMode):
    """Refuses to write two losses to one place: which one stays is then the device's choice."""

    writes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_put_.default and len(args[1]) == 2 and args[1][0] is not None:
            rows, slots = (index.numpy() for index in args[1])
            kept = rows < len(args[0]) - 1  # the last row takes what nobody reads
            pairs = set(zip(rows[kept].tolist(), slots[kept].tolist(), strict=True))
            assert len(pairs) == kept.sum()
            self.writes += 1
        return func(*args, **(kwargs or {}))


def test_second_moment_does_not_depend_on_the_order_of_writes() -> None:
    sampler = build(spec("second_moment", history=2), COARSE[:3])
    t, places = torch.tensor([0, 0, 1, 0, 0, 2, 0]), np.arange(7)
    with NoPlaceTwice() as watch:
        sampler.observe(t, torch.arange(7.0), places=places, batch=7, total=1000)
    assert watch.writes == 1


def test_second_moment_is_uniform_before_every_level_has_its_history() -> None:
    sampler = build(spec("second_moment", history=2))
    u = torch.from_numpy(randomness.uniform(2, "t", np.arange(100)))
    levels = np.arange(60)
    for round_number, levels_seen in enumerate([levels, levels[:-1], levels[-1:]]):
        t, correction = sampler.draw(0.5, u)
        np.testing.assert_array_equal(t, np.floor(u * 60))
        assert correction is not None
        np.testing.assert_array_equal(correction, np.ones(100, dtype=np.float32))
        places = np.arange(len(levels_seen))
        losses = loss_of(levels_seen, places + 100 * round_number)
        sampler.observe(torch.from_numpy(levels_seen), losses, places=places, batch=len(places), total=10_000)
    assert np.ptp(sampler.pmf(0.5)) > 0.01


def test_second_moment_leaves_the_objective_as_it_was() -> None:
    """The corrected loss has the mean of the plain one under uniform draws, at a smaller variance."""
    sampler = trained(spec("second_moment", history=10), num=60)
    p = sampler.pmf(0.5).numpy()
    assert p.max() / p.min() > 5.0
    u = torch.from_numpy(randomness.uniform(7, "t", np.arange(40_000)))
    t, correction = sampler.draw(0.5, u)
    assert correction is not None
    assert correction.dtype == torch.float32
    np.testing.assert_allclose(correction, 1.0 / (60 * p[t]), rtol=1e-6)
    level_loss = (1.0 + np.arange(60)) / 60.0
    corrected = level_loss[t] * correction.numpy()
    assert corrected.mean() == pytest.approx(level_loss.mean(), abs=4.0 * corrected.std() / 200.0)
    assert (p * level_loss / (60 * p)).sum() == pytest.approx(level_loss.mean(), rel=1e-12)
    assert corrected.std() < 0.5 * level_loss.std()
    assert level_loss[t].mean() > 1.1 * level_loss.mean()  # without the correction it would be another one


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_losses_that_say_nothing_leave_second_moment_uniform(bad: float) -> None:
    sampler = build(spec("second_moment", history=1))
    levels = np.arange(60)
    sampler.observe(torch.from_numpy(levels), torch.full((60,), bad), places=levels, batch=60, total=1000)
    np.testing.assert_allclose(sampler.pmf(0.5), 1.0 / 60.0, rtol=1e-12)


def plain_clusters(
    losses: list[float], batch: int, total: int, patience: float, smoothing: float
) -> list[int]:
    """The stage after each batch, in plain Python."""
    stage, found = 0, []
    summed = weight = waited = seen = 0.0
    best = float("inf")
    for loss in losses:
        keep = np.exp(-batch / (smoothing * total)) if smoothing else 0.0
        summed, weight = keep * summed + (1.0 - keep) * loss, keep * weight + (1.0 - keep)
        seen += batch
        if seen < smoothing * total:
            waited = 0.0
        elif summed / weight < best:
            best, waited = summed / weight, 0.0
        else:
            waited += batch
        if waited >= patience * total and stage < 4:
            stage, summed, weight, waited, seen, best = stage + 1, 0.0, 0.0, 0.0, 0.0, float("inf")
        found.append(stage)
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.02])
def test_clusters_open_as_plain_python_says(smoothing: float) -> None:
    curriculum = spec("clusters", patience=0.04, smoothing=smoothing)
    sampler, generator, batch, total = build(curriculum), np.random.default_rng(0), 8, 2400
    losses = [float(np.float32(0.5 + 0.995**step * generator.lognormal(0.0, 0.1))) for step in range(300)]
    expected = plain_clusters(losses, batch, total, 0.04, smoothing)
    assert isinstance(curriculum, Clusters)
    sizes, places = stages(curriculum, COARSE), np.arange(batch)
    for loss, stage in zip(losses, expected, strict=True):
        t, correction = sampler.draw(0.0, torch.linspace(0.0, 0.999, batch, dtype=torch.float64))
        assert correction is None
        sampler.observe(t, torch.full((batch,), loss), places=places, batch=batch, total=total)
        assert int((sampler.pmf(0.0) > 0.0).sum()) == sizes[stage]
    assert expected[-1] == 4
    assert sorted(set(expected)) == [0, 1, 2, 3, 4]


def opened(losses: list[float], batch: int, total: int) -> np.ndarray:
    """The levels in play after each batch."""
    sampler, places = build(spec("clusters", patience=0.1, smoothing=0.02)), np.arange(batch)
    sizes = []
    for loss in losses:
        t, _ = sampler.draw(0.0, torch.rand(batch, generator=torch.Generator().manual_seed(0)))
        sampler.observe(t, torch.full((batch,), loss), places=places, batch=batch, total=total)
        sizes.append(int((sampler.pmf(0.0) > 0.0).sum()))
    return np.array(sizes)


def test_clusters_wait_while_the_loss_falls_and_open_when_it_stays() -> None:
    assert (opened([1.0 - 0.001 * step for step in range(100)], 10, 1000) == 12).all()
    stays = opened([1.0] * 100, 10, 1000)
    assert stays[-1] == 60
    assert sorted(set(stays.tolist())) == [12, 24, 36, 48, 60]
    # Patience is a part of the budget: half the batch, or twice the budget, gives the same progress.
    np.testing.assert_array_equal(opened([1.0] * 100, 20, 2000), stays)
    finer = opened([1.0] * 200, 5, 1000)[1::2]
    assert np.abs(np.diff(finer).nonzero()[0] - np.diff(stays).nonzero()[0]).max() <= 3


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_resume_leaves_no_trace(kind: str) -> None:
    curriculum = spec(kind, **({"patience": 0.03} if kind == "clusters" else {}))
    whole = build(curriculum)
    before = advance(whole, 0, 25, 32)
    state = {name: values.clone() for name, values in whole.state_dict().items()}
    after = advance(whole, 25, 60, 32)
    again = build(curriculum)
    again.load_state_dict(state)
    for expected, found in zip(after, advance(again, 25, 60, 32), strict=True):
        assert torch.equal(expected, found)
    for name, values in whole.state_dict().items():
        assert torch.equal(values, again.state_dict()[name])
    assert bool(state) == adaptive(curriculum)
    if state:  # and it is the state that made the difference
        assert any(
            not torch.equal(expected, found)
            for expected, found in zip(after, advance(build(curriculum), 25, 60, 32), strict=True)
        )
    assert len(before) == 25


class HostMustNotWait(TorchDispatchMode):
    """Refuses what reads a number back from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.is_nonzero.default,
        ), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_host_never_waits_for_the_device(kind: str) -> None:
    sampler = trained(spec(kind), num=3)
    u = torch.from_numpy(randomness.uniform(2, "t", np.arange(32)))
    with HostMustNotWait():
        t, _ = sampler.draw(0.5, u)
        sampler.observe(t, u.float(), places=np.arange(32), batch=32, total=3200)
        sampler.pmf(0.5)
        # Indexing with a tensor of no dimension is such a wait, however innocent it looks.
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            u[t[0]]


LEARNING = """
import numpy as np, torch
from pydantic import TypeAdapter
from hasten.trainers import randomness, samplers
from hasten.trainers.curriculum import Curriculum
from hasten.trainers.diffusion import Ddpm, alphas_bar

def learn(fields, worker):
    spec = TypeAdapter(Curriculum).validate_python(fields)
    signal = alphas_bar(Ddpm(kind="ddpm", timesteps=40))
    sampler = samplers.build(spec, signal, device=torch.device("cpu"), worker=worker)
    done, total = 0, 601
    while done < total:  # the last batch is of one image: a rank has none
        batch = min(20, total - done)
        places = np.arange(batch)[worker.share(batch)]
        u = randomness.stratified(1, "t", done + places, places, batch)
        t, _ = sampler.draw(done / total, torch.from_numpy(u))
        noisy = np.exp(randomness.noise(3, "loss", done + places, (1,))[:, 0])
        loss = torch.from_numpy((1.0 + t.numpy()) / 40.0 * noisy).float()
        sampler.observe(t, loss, places=places, batch=batch, total=total)
        done += batch
    return {"pmf": sampler.pmf(1.0), **sampler.state_dict()}

learnt = lambda worker: {
    "second_moment": learn({"kind": "second_moment", "history": 2}, worker),
    "clusters": learn({"kind": "clusters", "clusters": 5, "patience": 0.05, "smoothing": 0.02}, worker),
}
"""
RANK = """
import sys
import torch.distributed as dist
from hasten.trainers.worker import Worker

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
dist.init_process_group("gloo", init_method=sys.argv[2], rank=int(sys.argv[1]), world_size=2)
torch.save(learnt(Worker(rank=int(sys.argv[1]), world_size=2)), sys.argv[3])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_adaptive_state_is_equal_on_both_ranks_and_to_one_process(tmp_path: Path) -> None:
    """Two real processes under gloo, and the same run alone: equal to the last bit."""
    meeting, files = f"file://{tmp_path}/meeting", [tmp_path / "0.pt", tmp_path / "1.pt"]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", LEARNING + RANK, str(rank), meeting, str(file)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    namespace: dict[str, Any] = {}
    exec(LEARNING, namespace)
    alone = namespace["learnt"](Worker())
    for child in children:
        _, problem = child.communicate(timeout=300)
        assert child.returncode == 0, problem
    assert np.ptp(alone["second_moment"]["pmf"]) > 0.0  # it has learnt something
    assert int(alone["clusters"]["stage"]) > 0
    for file in files:
        other = torch.load(file)
        for kind, state in alone.items():
            assert state.keys() == other[kind].keys()
            for name, values in state.items():
                assert torch.equal(values, other[kind][name]), (kind, name)
