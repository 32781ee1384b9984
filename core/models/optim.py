"""SGD with the published parameter groups and the poly schedule (docs/method.md, "Optimisation")."""

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR


def parameter_groups(model: nn.Module, lr: float, wd: float) -> list[dict]:
    """Return groups: backbone weights lr with decay, biases 2 lr without; new weights 10 lr with, biases 20 lr without.

    'Weight' includes the scales of norm layers. Frozen parameters are left out. Everything outside model.backbone is
    new.
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


def build_sgd(
    trained: nn.Module | Iterable[nn.Parameter],
    iterations: int,
    *,
    lr: float,
    wd: float,
    momentum: float,
    nesterov: bool,
) -> tuple[SGD, PolynomialLR]:
    """Return SGD and the schedule lr(t) = lr0 (1 - t / iterations)^0.9, whose first step uses lr0.

    It trains a network in the published groups, or parameters that all have the same learning rate and decay.
    """
    groups = parameter_groups(trained, lr, wd) if isinstance(trained, nn.Module) else trained
    optimizer = SGD(groups, lr=lr, weight_decay=wd, momentum=momentum, nesterov=nesterov)
    return optimizer, PolynomialLR(optimizer, iterations, power=0.9)
