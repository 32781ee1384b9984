"""SGD with the published parameter groups and the poly schedule (METHOD, section 3)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(model: nn.Module, lr: float, wd: float) -> list[dict]:
    """Backbone weights lr with decay, backbone biases 2 lr without, new weights 10 lr with, new biases 20 lr without.

    'Weight' includes those of norm layers; frozen parameters are left out; new is whatever is not in model.backbone.
    """
    groups: dict[str, list] = {'backbone.weight': [], 'backbone.bias': [], 'new.weight': [], 'new.bias': []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = 'backbone' if name.startswith('backbone.') else 'new'
            groups[f'{owner}.{"bias" if name.endswith("bias") else "weight"}'].append(parameter)
    factors = {'backbone.weight': (1, wd), 'backbone.bias': (2, 0), 'new.weight': (10, wd), 'new.bias': (20, 0)}
    return [
        {'params': parameters, 'lr': factors[name][0] * lr, 'weight_decay': factors[name][1], 'name': name}
        for name, parameters in groups.items()
        if parameters
    ]


def sgd_poly(
    groups: list[dict] | Iterable, lr: float, wd: float, momentum: float, nesterov: bool, iterations: int
) -> tuple[torch.optim.SGD, LambdaLR]:
    """SGD and lr(t) = lr0 (1 - t / iterations)^0.9, the first step at lr0."""
    optimizer = torch.optim.SGD(groups, lr=lr, weight_decay=wd, momentum=momentum, nesterov=nesterov)
    return optimizer, LambdaLR(optimizer, lambda t: max(0.0, 1 - t / iterations) ** 0.9)


def take_step(loss: torch.Tensor, optimizer: torch.optim.SGD, schedule: LambdaLR) -> float:
    """Descend along the gradient of the loss, then move the schedule on; returns the learning rate just used."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    lr = optimizer.param_groups[0]['lr']
    schedule.step()
    return lr
