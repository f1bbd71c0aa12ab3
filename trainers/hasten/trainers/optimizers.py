"""torch's optimizers, built from their spec and steered by the schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hasten.trainers.specs import AdamW, Optimizer, Sgd


def build(spec: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """A fused optimizer over ``parameters``; its rate and momentum are set anew before every step."""
    match spec:
        case AdamW():
            return torch.optim.AdamW(
                parameters,
                lr=spec.lr,
                betas=(0.9, spec.beta2),
                weight_decay=spec.weight_decay,
                fused=True,
            )
        case Sgd():
            return torch.optim.SGD(parameters, lr=spec.lr, weight_decay=spec.weight_decay, fused=True)


def adopted(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Another optimizer's state with its moments, but with the settings of this one."""
    return {"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]}


def steer(spec: Optimizer, optimizer: torch.optim.Optimizer, lr: float, beta1: float) -> None:
    """Set this moment's learning rate and momentum, on the host: nothing is compiled or captured anew."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        match spec:
            case AdamW():
                group["betas"] = (beta1, spec.beta2)
            case Sgd():
                group["momentum"] = beta1
                group["dampening"] = beta1 if spec.convention == "average" else 0.0
