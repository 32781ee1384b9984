"""SGD: parameter groups and the schedule of their learning rates."""

import pytest
import torch
from torch import nn

from core.models import AffinityNet, Classifier
from core.models.optim import build_sgd, parameter_groups

NARROW = 'resnest14_narrow'
GROUPS = ['backbone.weight', 'backbone.bias', 'new.weight', 'new.bias']
OPTIONS = {'lr': 0.1, 'wd': 1e-4, 'momentum': 1e-4, 'nesterov': True}


def test_parameter_groups():
    model = Classifier(NARROW, 5)
    model.extra = nn.Linear(2, 3)
    groups = {group['name']: group for group in parameter_groups(model, 0.1, 1e-4)}
    assert {name: (group['lr'], group['weight_decay']) for name, group in groups.items()} == {
        'backbone.weight': (pytest.approx(0.1), 1e-4),
        'backbone.bias': (pytest.approx(0.2), 0),
        'new.weight': (pytest.approx(1.0), 1e-4),
        'new.bias': (pytest.approx(2.0), 0),
    }
    members = {name: {id(p) for p in group['params']} for name, group in groups.items()}
    assert members['new.weight'] == {id(model.classifier.weight), id(model.extra.weight)}
    assert members['new.bias'] == {id(model.extra.bias)}
    for module in model.backbone.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            assert id(module.weight) in members['backbone.weight']
            assert module.bias is None or id(module.bias) in members['backbone.bias']
    assert sum(map(len, members.values())) == len(list(model.parameters()))


def test_frozen_parameters_are_in_no_group():
    model = Classifier(NARROW, 5, 'fix')
    trained = {id(p) for group in parameter_groups(model, 0.1, 1e-4) for p in group['params']}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group['name'] for group in parameter_groups(AffinityNet(NARROW), 0.1, 1e-4)] == ['new.weight', 'new.bias']


def test_poly_schedule_of_all_groups():
    model = Classifier(NARROW, 5)
    model.extra = nn.Linear(2, 3)
    optimizer, schedule = build_sgd(model, 20, **OPTIONS)
    assert [group['name'] for group in optimizer.param_groups] == GROUPS
    for t in range(20):
        expected = [factor * 0.1 * (1 - t / 20) ** 0.9 for factor in (1, 2, 10, 20)]
        assert [group['lr'] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        schedule.step()
    assert all(group['lr'] == 0 for group in optimizer.param_groups)
    assert all(group['momentum'] == 1e-4 and group['nesterov'] for group in optimizer.param_groups)


def test_step_with_nesterov_momentum():
    parameter = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer, schedule = build_sgd([parameter], 4, **{**OPTIONS, 'wd': 0.01, 'momentum': 0.5})
    value, velocity = 2.0, 0.0
    for t in range(4):
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()
        schedule.step()
        gradient = 2 * value + 0.01 * value
        velocity = gradient if t == 0 else 0.5 * velocity + gradient
        value -= 0.1 * (1 - t / 4) ** 0.9 * (gradient + 0.5 * velocity)
        assert parameter.item() == pytest.approx(value, rel=1e-12)


def test_parameters_alone_have_one_rate_and_decay():
    head = AffinityNet(NARROW).head
    optimizer, _ = build_sgd(head.parameters(), 20, **OPTIONS)
    (group,) = optimizer.param_groups
    assert (group['lr'], group['weight_decay']) == (0.1, 1e-4)
    assert {id(p) for p in group['params']} == {id(p) for p in head.parameters()}


def test_learning_rate_continues_where_it_was_saved():
    """PolynomialLR multiplies the rate of the step before: saved and loaded, it must not drift."""

    def build():
        return build_sgd([nn.Parameter(torch.ones(1))], 20, **OPTIONS)

    optimizer, schedule = build()
    for t in range(20):
        assert optimizer.param_groups[0]['lr'] == pytest.approx(0.1 * (1 - t / 20) ** 0.9, rel=1e-12)
        optimizer.step()
        schedule.step()
        state = optimizer.state_dict(), schedule.state_dict()
        optimizer, schedule = build()
        optimizer.load_state_dict(state[0])
        schedule.load_state_dict(state[1])
