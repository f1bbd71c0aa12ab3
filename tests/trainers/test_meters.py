from __future__ import annotations

import torch

from hasten.trainers.meters import Meter
from hasten.trainers.pulse import Pulse
from hasten.trainers.worker import Worker

T = torch.tensor([5, 700])


def test_mean_over_all_images_since_the_last_reading() -> None:
    meter = Meter(Worker())
    meter.add(torch.tensor([1.0, 3.0]), T, image=0, batch=2)
    meter.add(torch.tensor([5.0]), T[:1], image=2, batch=1)
    assert meter.read() == 3.0
    meter.add(torch.tensor([7.0]), T[:1], image=3, batch=1)
    assert meter.read() == 7.0
    assert meter.diverged() is None


def test_the_first_broken_loss_is_named_by_image_and_level() -> None:
    meter = Meter(Worker())
    meter.add(torch.tensor([1.0, 2.0]), T, image=0, batch=2)
    meter.add(torch.tensor([1.0, float("inf")]), T, image=2, batch=2)
    meter.add(torch.tensor([float("nan"), 1.0]), T, image=4, batch=2)
    assert meter.diverged() == (2, 700)


def test_a_meter_goes_on_from_its_state() -> None:
    whole, first = Meter(Worker()), Meter(Worker())
    for meter in (whole, first):
        meter.add(torch.tensor([0.1, 0.7]), T, image=0, batch=2)
    second = Meter(Worker())
    second.load_state_dict(first.state_dict())
    for meter in (whole, second):
        meter.add(torch.tensor([0.3]), T[:1], image=2, batch=1)
    assert second.read() == whole.read()


def test_alone_stop_is_asked_after_every_step() -> None:
    asked = iter([False, False, True])
    pulse = Pulse(Worker(), lambda: next(asked))
    assert [pulse.stopping() for _ in range(3)] == [False, False, True]
