"""Complete runs of the three trainers, every step against a separate, direct recomputation in double precision.

The scripts run as they are, on a backbone of five convolutions. The inputs and effects of each step are recorded; NumPy
loops then compute what it should have done: the loss, its gradient by differences of that loss, the learning rate and
the update of every parameter over the complete schedule, and the running statistics of BatchNorm.
"""

import numpy as np
import pytest
import torch
from torch import nn

import train_affinitynet
import train_classification_with_puzzle
import train_segmentation
from core.models.backbones import BACKBONES, Backbone
from support import bilinear, directions_of
from support.networks import STRIDES, Tiny, labels_of
from util.parallel import batch as shared_batch
from util.training.run import Run

LR, WD, MOMENTUM, ALPHA = 0.02, 0.01, 0.6, 4.0


# Reference: NumPy, float64, one image, one kernel position, one class at a time -------------------------------------


def convolve(x, weight, bias=None, stride=1, dilation=1):
    reach = dilation * (weight.shape[2] // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    h, w = ((side - 1) // stride + 1 for side in x.shape[2:])
    out = np.zeros((len(x), len(weight), h, w)) + (0 if bias is None else bias[:, None, None])
    for ky in range(weight.shape[2]):
        for kx in range(weight.shape[3]):
            y, left = ky * dilation, kx * dilation
            seen = padded[:, :, y : y + stride * (h - 1) + 1 : stride, left : left + stride * (w - 1) + 1 : stride]
            for n in range(len(x)):
                out[n] += np.tensordot(weight[:, :, ky, kx], seen[n], 1)
    return out


def normalise(x, mean, var, state, name):
    x = (x - mean[..., None, None]) / np.sqrt(var[..., None, None] + 1e-5)
    return x * state[f'{name}.weight'][:, None, None] + state[f'{name}.bias'][:, None, None]


def frozen_norm(x, state, name):
    return normalise(x, state[f'{name}.running_mean'], state[f'{name}.running_var'], state, name)


class BatchNorm:
    """Normalise by the batch; `moved` holds the running statistics of every layer after all passes."""

    def __init__(self, state):
        self.moved = {name: value for name, value in state.items() if 'running' in name}

    def __call__(self, x, state, name):
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        count = x.size / x.shape[1]
        for kind, value in (('mean', mean), ('var', var * count / (count - 1))):
            key = f'{name}.running_{kind}'
            self.moved[key] = 0.9 * self.moved[key] + 0.1 * value
        return normalise(x, mean, var, state, name)


def group_norm(x, state, name):
    groups = x.reshape(len(x), 4, -1)
    mean, var = (np.repeat(value, x.shape[1] // 4, 1) for value in (groups.mean(2), groups.var(2)))
    return normalise(x, mean, var, state, name)


def backbone(x, state, norm):
    features = []
    for i, stride in enumerate(STRIDES):
        conv = f'backbone.conv{i}'
        x = convolve(x, state[f'{conv}.weight'], state.get(f'{conv}.bias'), stride)
        x = np.maximum(norm(x, state, f'backbone.bn{i}'), 0)
        features.append(x)
    return features


def corners_aligned(x, size):
    """Resize bilinearly so that the first and last pixels keep their positions."""
    for axis, outputs in ((2, size[0]), (3, size[1])):
        inputs = x.shape[axis]
        matrix = np.zeros((outputs, inputs))
        for i in range(outputs):
            at = i * (inputs - 1) / (outputs - 1)
            low = min(int(at), inputs - 1)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, inputs - 1)] += at - low
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def soft_margin(logits, labels):
    p = 1 / (1 + np.exp(-logits))
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()


def classifier_loss(step, state, replicas, mode, smoothing):
    """Return L_cls + L_p-cls + alpha L_re of four tiles, and the running statistics after it."""
    images, labels = step['images'], step['labels']
    norms = [BatchNorm(state) for _ in range(replicas)] if mode == 'normal' else [frozen_norm] * replicas

    def class_maps(x):
        parts = np.split(x, replicas)  # each device normalises its own share
        parts = [backbone(part, state, norm)[-1] for part, norm in zip(parts, norms, strict=True)]
        return convolve(np.concatenate(parts), state['classifier.weight'])

    maps = class_maps(images)
    half = images.shape[2] // 2
    tiles = [images[:, :, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    a, b, c, d = np.split(class_maps(np.concatenate(tiles)), 4)
    merged = np.concatenate([np.concatenate([a, b], 3), np.concatenate([c, d], 3)], 2)

    distance = 0
    for n in range(len(maps)):
        for k in np.flatnonzero(labels[n]):
            distance += np.abs(maps[n, k] - merged[n, k]).sum()
    alpha = min(ALPHA, ALPHA * step['iteration'] / (0.5 * step['iterations']))
    labels = np.where(labels, 1 - smoothing / 2, smoothing / 2)
    loss = soft_margin(maps.mean((2, 3)), labels) + soft_margin(merged.mean((2, 3)), labels)
    # The running statistics come from the first device.
    return loss + alpha * distance / maps.size, norms[0].moved if mode == 'normal' else None


def edge_head(features, state):
    h, w = features[1].shape[2:]
    parts = []
    for i, (x, factor) in enumerate(zip(features, (1, 1, 2, 4, 4), strict=True)):
        x = group_norm(convolve(x, state[f'head.reduce.{i}.0.weight']), state, f'head.reduce.{i}.1')
        parts.append(np.maximum(bilinear(x, (x.shape[2] * factor, x.shape[3] * factor)), 0)[:, :, :h, :w])
    return convolve(np.concatenate(parts, 1), state['head.classify.weight'], state['head.classify.bias'])


def affinity_net_loss(step, state, radius):
    edges = 1 / (1 + np.exp(-edge_head(backbone(step['images'], state, frozen_norm), state)[:, 0]))
    h, w = edges.shape[1:]
    sums, counts = np.zeros(3), np.zeros(3)
    for (far_y, far_x), path in directions_of(radius).items():
        for y in range(h - radius + 1):
            for x in range(radius - 1, w - radius + 1):
                affinity = 1 - np.max([edges[:, y + dy, x + dx] for dy, dx in path], 0)
                for p, one, other in zip(
                    affinity, step['masks'][:, y, x], step['masks'][:, y + far_y, x + far_x], strict=True
                ):
                    if one == 255 or other == 255:
                        continue
                    kind = 2 if one != other else int(one != 0)
                    sums[kind] -= np.log((1 - p if kind == 2 else p) + 1e-5)
                    counts[kind] += 1
    background, foreground, negative = sums / (counts + 1e-5)
    assert (counts > 0).all()
    return ((background + foreground) / 2 + negative) / 2, None


def deeplab_loss(step, state, mode, use_gn, smoothing):
    moving = BatchNorm(state)
    norm = moving if mode == 'normal' else frozen_norm
    head_norm = group_norm if use_gn else norm
    masks = iter(step['dropout'])

    def unit(x, name, dilation=1, drops=False):
        x = np.maximum(head_norm(convolve(x, state[f'{name}.0.weight'], dilation=dilation), state, f'{name}.1'), 0)
        return x * next(masks) if drops else x

    features = backbone(step['images'], state, norm)
    x = features[-1]
    parts = [unit(x, f'aspp.branches.{i}', dilation) for i, dilation in enumerate((1, 6, 12, 18))]
    parts.append(unit(x.mean((2, 3), keepdims=True), 'aspp.pooled') + 0 * parts[0])
    x = unit(np.concatenate(parts, 1), 'aspp.project', drops=True)
    low = unit(features[1], 'decoder.low')
    x = np.concatenate([corners_aligned(x, low.shape[2:]), low], 1)
    for i in range(2):
        x = unit(x, f'decoder.fuse.{i}', drops=True)
    logits = convolve(x, state['decoder.classify.weight'], state['decoder.classify.bias'])
    logits = corners_aligned(logits, step['images'].shape[2:])
    total, count = 0, 0
    for n, mask in enumerate(step['masks']):
        for k in set(mask.flat) - {255}:
            at = mask == k
            probabilities = logits[n] - np.log(np.exp(logits[n]).sum(0))
            total -= ((1 - smoothing) * probabilities[k] + smoothing * probabilities.mean(0))[at].sum()
            count += at.sum()
    return total / count, moving.moved if mode == 'normal' else None


# Recording of the scripts --------------------------------------------------------------------------------------------


def arrays(tensors) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy().copy() for name, value in tensors}


def recorded(script, line, monkeypatch) -> list[dict]:
    """Run a trainer in double precision; return inputs, loss, gradients, rates and both states of each step."""
    steps, now = [], {'dropout': []}

    def shared(model, *arguments, real=script.SharedModel, **options):
        now['model'] = model.double()
        now['statistics'] = arrays(model.named_buffers())
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(remember_dropout)
        return real(model, *arguments, **options)

    def remember_dropout(module, inputs, output):
        if not module.training:
            return
        kept = torch.where(inputs[0] == 0, 1 / (1 - module.p), output / inputs[0])
        assert set(kept.detach().numpy().round(9).flat) <= {0, round(1 / (1 - module.p), 9)}
        now['dropout'].append(kept.detach().numpy())

    def batches(self, real=Run.batches):
        for batch in real(self):
            now['batch'], now['dropout'], now['loss'] = batch, [], 0
            yield batch

    def normalize(images, real=shared_batch.normalize):
        """Normalise in float64, 0 around the picture; the script's own float32 must agree."""
        pixels = images.pixels.numpy().astype(np.float64)
        x = ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2)
        inside = np.zeros((len(x), 1, *x.shape[2:]))
        for here, (left, top, right, bottom) in zip(inside, images.box.tolist(), strict=True):
            here[:, top:bottom, left:right] = 1
        x = torch.from_numpy(x * inside)
        torch.testing.assert_close(real(images).double(), x, rtol=1e-5, atol=1e-6)
        now['images'] = x.numpy()
        return x

    def backward(self, loss, real=Run.backward):
        now['loss'] += loss.item()
        real(self, loss)

    def take_step(self, *arguments, real=Run.step, **more):
        model = now['model']
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        rates = {names[id(p)]: group['lr'] for group in self.optimizer.param_groups for p in group['params']}
        step = {key: value.numpy() for key, value in now['batch'].items() if key in ('labels', 'masks')}
        step |= dict(images=now['images'], dropout=now['dropout'], rates=rates)
        step |= dict(iteration=len(steps), before=arrays(model.named_parameters()))
        # The forward pass has already updated the running statistics: before it they were as the last step left them.
        step['statistics before'], step['statistics'] = now['statistics'], arrays(model.named_buffers())
        now['statistics'] = step['statistics']
        real(self, *arguments, **more)
        step['loss'] = now['loss']
        step['logged'] = {name: points[-1] for name, points in self.log.curves.items()}
        step['gradients'] = arrays((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        step['after'] = arrays(model.named_parameters())
        steps.append(step)

    monkeypatch.setitem(BACKBONES, 'tiny', Backbone(lambda output_stride: Tiny(), {}))
    monkeypatch.setattr(script, 'SharedModel', shared)
    monkeypatch.setattr(shared_batch, 'normalize', normalize)
    monkeypatch.setattr(Run, 'batches', batches)
    monkeypatch.setattr(Run, 'backward', backward)
    monkeypatch.setattr(Run, 'step', take_step)
    torch.manual_seed(0)
    script.main(script.parse_args(line.split()))
    return [dict(step, iterations=len(steps)) for step in steps]


GROUPS = {  # (in the backbone, kind): factor of the learning rate, weight decay
    (True, 'weight'): (1, WD),
    (True, 'bias'): (2, 0),
    (False, 'weight'): (10, WD),
    (False, 'bias'): (20, 0),
}


def check(steps, loss_of, trains, groups=GROUPS, tested=1.0):
    """Compare each step with loss_of(step, state) -> loss, statistics. trains(name): whether the parameter trains.

    Slopes are compared for this part of the tensors, drawn again in each step, everything else for all of them.
    """
    rng = np.random.default_rng(0)
    velocity = {}
    for t, step in enumerate(steps):
        state = step['before'] | step['statistics before']
        loss, statistics = loss_of(step, state)
        assert step['loss'] == pytest.approx(loss, rel=1e-9)

        # The gradient: the slope of the reference loss along a random direction in each tensor, over a distance so
        # short that hardly any ReLU switches on the way.
        assert step['gradients'].keys() == {name for name in step['before'] if trains(name)}
        names = list(step['gradients'])
        for name in rng.choice(names, max(1, round(tested * len(names))), replace=False) if tested < 1 else names:
            gradient = step['gradients'][name]
            direction = rng.standard_normal(gradient.shape)
            direction *= 1e-7 / np.linalg.norm(direction)
            up, down = (loss_of(step, state | {name: state[name] + s * direction})[0] for s in (1, -1))
            expected = float((gradient * direction).sum())
            norm = np.linalg.norm(gradient) * 1e-7
            assert (up - down) / 2 == pytest.approx(expected, rel=1e-4, abs=1e-4 * norm + 1e-15), name

        # The learning rates (docs/method.md, "Optimisation") and the update.
        poly = LR * (1 - t / len(steps)) ** 0.9
        assert step['logged']['lr'] == [t + 1, pytest.approx(poly, rel=1e-12)]
        assert step['logged']['loss'] == [t + 1, pytest.approx(step['loss'], rel=1e-12)]
        for name, before in step['before'].items():
            if not trains(name):
                np.testing.assert_array_equal(step['after'][name], before)
                assert name not in step['rates']
                continue
            part, kind = name.split('.')[0], name.rsplit('.', 1)[1]
            factor, decay = groups[part == 'backbone', kind]
            assert step['rates'][name] == pytest.approx(factor * poly, rel=1e-12), name
            slope = step['gradients'][name] + decay * before
            velocity[name] = slope if t == 0 else MOMENTUM * velocity[name] + slope
            move = factor * poly * (slope + MOMENTUM * velocity[name])
            np.testing.assert_allclose(step['after'][name], before - move, rtol=1e-10, atol=1e-13, err_msg=name)

        # Running statistics: updated in training mode, otherwise unchanged.
        for name, value in step['statistics'].items():
            if 'running' in name:
                expected = step['statistics before'][name] if statistics is None else statistics[name]
                np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12, err_msg=name)


COMMON = '--num_workers 0 --device cpu --weights none --print_ratio 0 --tag run'
COMMON += f' --lr {LR} --wd {WD} --momentum {MOMENTUM}'


@pytest.mark.parametrize('mode, replicas, smoothing', [('normal', 1, 0), ('normal', 4, 0), ('fix', 1, 0.25)])
def test_classifier(demo, in_tmp, monkeypatch, mode, replicas, smoothing):
    line = f'--dataset {demo}/dataset.json --data_dir {demo} {COMMON} --architecture tiny --mode {mode} --alpha {ALPHA}'
    line += f' --bn_replicas {replicas} --batch_size 8 --image_size 64 --min_image_size 48 --max_image_size 80'
    line += f' --label_smoothing {smoothing}'
    steps = recorded(train_classification_with_puzzle, f'{line} --max_epoch 4', monkeypatch)
    assert len(steps) == 4
    frozen = () if mode == 'normal' else tuple(f'backbone.{part}{i}.' for part in ('conv', 'bn') for i in range(3))
    check(
        steps,
        lambda step, state: classifier_loss(step, state, replicas, mode, smoothing),
        lambda name: not (frozen and name.startswith(frozen)),
        GROUPS,
    )


def test_affinity_net(demo, in_tmp, monkeypatch):
    line = f'--dataset {demo}/dataset.json --data_dir {demo} {COMMON} --architecture tiny --radius 4 --batch_size 6'
    line += f' --image_size 64 --min_image_size 48 --max_image_size 80 --label_name {labels_of(demo, in_tmp)}'
    steps = recorded(train_affinitynet, f'{line} --max_epoch 2', monkeypatch)
    assert len(steps) == 4
    head = {
        (False, 'weight'): (1, WD),
        (False, 'bias'): (1, WD),
    }  # docs/method.md, "AffinityNet": one rate for all of it
    check(
        steps, lambda step, state: affinity_net_loss(step, state, 4), lambda name: not name.startswith('backbone'), head
    )


@pytest.mark.parametrize('tested', [0.1, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize('mode, use_gn, smoothing', [('fix', True, 0), ('normal', False, 0.2)])
def test_deeplab(demo, in_tmp, monkeypatch, mode, use_gn, smoothing, tested):
    line = f'--dataset {demo}/dataset.json --data_dir {demo} {COMMON} --backbone tiny --mode {mode} --use_gn {use_gn}'
    line += f' --image_size 32 --min_image_size 24 --max_image_size 64 --label_name {labels_of(demo, in_tmp)}'
    line += f' --batch_size 4 --max_epoch 1 --label_smoothing {smoothing}'
    steps = recorded(train_segmentation, line, monkeypatch)
    assert len(steps) == 3
    check(
        steps, lambda step, state: deeplab_loss(step, state, mode, use_gn, smoothing), lambda name: True, tested=tested
    )


@pytest.mark.parametrize('architecture, stride', [('Seg_Model', 16), ('CSeg_Model', 4)])
def test_labels_are_resized_to_the_output_by_their_top_left_pixels(demo, in_tmp, monkeypatch, architecture, stride):
    seen = []

    def batches(self, real=Run.batches):
        for batch in real(self):
            seen.append([batch['masks'].long()])
            yield batch

    def cross_entropy(logits, labels, real=train_segmentation.F.cross_entropy, **options):
        seen[-1].append(labels)
        return real(logits, labels, **options)

    monkeypatch.setattr(Run, 'batches', batches)
    monkeypatch.setattr(train_segmentation.F, 'cross_entropy', cross_entropy)
    line = f'--dataset {demo}/dataset.json --data_dir {demo} {COMMON} --backbone resnest14_narrow --batch_size 4'
    line += f' --image_size 32 --min_image_size 32 --max_image_size 64 --label_name {labels_of(demo, in_tmp)}'
    args = train_segmentation.parse_args(f'{line} --max_epoch 1 --architecture {architecture}'.split())
    train_segmentation.main(args)
    assert seen
    for masks, labels in seen:
        assert masks.shape == (4, 32, 32)
        assert torch.equal(labels, masks[:, ::stride, ::stride])
