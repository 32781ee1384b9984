"""Reference implementation of each stage, close to the published code. benchmarks/run.py compares run times.

It is written to be read, not to be fast. tests/stages/test_benchmarks.py shows that the stages compute the same.
"""

import io

import numpy as np
import pydensecrf.densecrf as dcrf
import torch
import torch.nn.functional as F
from PIL import Image
from pydensecrf.utils import unary_from_labels, unary_from_softmax

from core.affinity import search_paths

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def path_indices(radius, size):
    """Return the sources and, per path length, an index tensor (directions, points, sources); far ends come first."""
    h, w = size
    rows, columns = np.mgrid[: h - (radius - 1), radius - 1 : w - (radius - 1)]
    groups = {}
    for path in search_paths(radius):
        points = np.stack([((rows + y) * w + columns + x).ravel() for y, x in path])
        groups.setdefault(len(path), []).append(points)
    return (rows * w + columns).ravel(), [torch.from_numpy(np.stack(group)) for group in groups.values()]


def edge_to_affinity(edge, groups):
    """Gather every point of every path and take the maximum: (N, h, w) -> (N, directions, sources)."""
    flat = edge.flatten(1)
    return 1 - torch.cat([flat[:, group].amax(2) for group in groups], 1)


def affinity_pairs(label, sources, groups):
    """Return bg_pos, fg_pos and neg of a label map (h, w), float32 (directions, sources) as in the published loader."""
    flat = label.flatten().long()
    source = flat[torch.from_numpy(sources)][None]
    target = torch.cat([flat[group[:, 0]] for group in groups])
    valid = (source != 255) & (target != 255)
    equal = (source == target) & valid
    return [x.float() for x in (equal & (source == 0), equal & (source != 0), valid & (source != target))]


def random_walk(cam, edge, radius=5, beta=10, exp_times=8):
    """Square the dense transition matrix exp_times times, in cam's dtype: (K, h, w), (h, w) -> (K, h, w)."""
    k, h, w = cam.shape
    padded = F.pad(edge[None], (radius, radius, 0, radius), value=1.0)
    size = tuple(padded.shape[1:])
    sources, groups = path_indices(radius, size)
    affinity = edge_to_affinity(padded, groups)[0].pow(beta)
    source = torch.from_numpy(sources).expand(len(affinity), -1)
    target = torch.cat([group[:, 0] for group in groups])
    source, target = source.to(cam.device), target.to(cam.device)
    number = torch.full(size, -1, device=cam.device)
    number[:h, radius : radius + w] = torch.arange(h * w, device=cam.device).view(h, w)
    source, target = number.flatten()[source], number.flatten()[target]
    inside = (source >= 0) & (target >= 0)
    dense = torch.eye(h * w, dtype=cam.dtype, device=cam.device)
    dense[source[inside], target[inside]] = affinity[inside]
    dense[target[inside], source[inside]] = affinity[inside]
    transition = dense / dense.sum(0, keepdim=True)
    for _ in range(exp_times):
        transition = transition @ transition
    return ((cam * (1 - edge)).reshape(k, -1) @ transition).view(k, h, w)


def crf_from_label(image, label, num_labels, iterations):
    """Refine one label map (h, w), with a separate lattice."""
    h, w = image.shape[:2]
    crf = dcrf.DenseCRF2D(w, h, num_labels)
    crf.setUnaryEnergy(unary_from_labels(label, num_labels, gt_prob=0.7, zero_unsure=False))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    return np.argmax(crf.inference(iterations), 0).reshape(h, w)


def threshold_cams(keys, maps, threshold):
    """Return the class of each pixel (h, w)."""
    background = np.full((1, *maps.shape[1:]), threshold, np.float32)
    return keys[np.argmax(np.concatenate([background, maps]), 0)]


def affinity_label(image, keys, hr_cam, fg_threshold=0.40, bg_threshold=0.10):
    """Return the affinity label (h, w)."""
    background = np.full((1, *hr_cam.shape[1:]), fg_threshold, np.float32)
    fg = crf_from_label(image, np.argmax(np.concatenate([background, hr_cam]), 0), len(keys), 10)
    background = np.full((1, *hr_cam.shape[1:]), bg_threshold, np.float32)
    bg = crf_from_label(image, np.argmax(np.concatenate([background, hr_cam]), 0), len(keys), 10)
    label = keys[fg].copy()
    label[fg == 0] = 255
    label[(fg == 0) & (bg == 0)] = 0
    return label


def sweep(folder, masks, ids, num_classes, thresholds, name='hr_cam'):
    """Return {threshold: (T, P, TP)}: per threshold read every file, and scan every pixel three times per class."""
    found = {}
    for threshold in thresholds:
        counts = np.zeros((3, num_classes), np.int64)
        for image_id in ids:
            with np.load(folder / f'{image_id}.npz') as file:
                keys, maps = file['keys'], file[name]
            mask = np.array(Image.open(masks / f'{image_id}.png'))
            prediction = threshold_cams(keys, maps, threshold)
            valid = mask < 255
            same = (prediction == mask) * valid
            for c in range(num_classes):
                counts[0, c] += np.sum((mask == c) * valid)
                counts[1, c] += np.sum((prediction == c) * valid)
                counts[2, c] += np.sum((mask == c) * same)
        found[threshold] = counts
    return found


def train_sample(path, longer_side, flip, offsets, size=512):
    """Decode, resize, flip, normalise in float64 and crop into a canvas: (3, size, size) float32."""
    image = Image.open(path).convert('RGB')
    scale = longer_side / max(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), Image.Resampling.BICUBIC)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = (np.asarray(image) / 255.0 - MEAN) / STD
    (x, to_x), (y, to_y) = offsets
    h, w = min(size, pixels.shape[0] - y), min(size, pixels.shape[1] - x)
    canvas = np.zeros((size, size, 3), np.float32)
    canvas[to_y : to_y + h, to_x : to_x + w] = pixels[y : y + h, x : x + w]
    return torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))


def multi_scale_cam(classifier, image, labels, scales):
    """Return keys, cam and hr_cam of a PIL image: one pass per scale and flip, all classes."""
    w, h = image.size
    cam, hr_cam = 0, 0
    for scale in scales:
        resized = image.resize((round(w * scale), round(h * scale)), Image.Resampling.BICUBIC)
        pixels = ((np.asarray(resized) / 255.0 - MEAN) / STD).transpose(2, 0, 1)
        x = torch.from_numpy(np.ascontiguousarray(pixels, np.float32))[None].to(next(classifier.parameters()).device)
        with torch.no_grad():
            maps = F.relu(classifier(x, with_cam=True)[1]) + F.relu(classifier(x.flip(3), with_cam=True)[1]).flip(3)
        cam = cam + F.interpolate(maps, ((h - 1) // 4 + 1, (w - 1) // 4 + 1), mode='bilinear', align_corners=False)[0]
        size = (-(-h // 16) * 16, -(-w // 16) * 16)
        hr_cam = hr_cam + F.interpolate(maps, size, mode='bilinear', align_corners=False)[0, :, :h, :w]
    present = np.flatnonzero(labels)
    cam, hr_cam = cam[present], hr_cam[present]
    maps = [x / (x.amax((1, 2), keepdim=True) + 1e-5) for x in (cam, hr_cam)]
    return np.concatenate([[0], present + 1]), maps[0].cpu().numpy(), maps[1].cpu().numpy()


def segmentation(model, image, scales, iterations):
    """Return the classes (h, w) of a PIL image: one pass per scale and flip, then the dense CRF."""
    w, h = image.size
    total = 0
    for scale in scales:
        resized = image.resize((round(w * scale), round(h * scale)), Image.Resampling.BICUBIC)
        pixels = ((np.asarray(resized) / 255.0 - MEAN) / STD).transpose(2, 0, 1)
        device = next(model.parameters()).device
        x = torch.from_numpy(np.ascontiguousarray(pixels, np.float32))[None].to(device)
        with torch.no_grad():
            for y in (model(x), model(x.flip(3)).flip(3)):
                total = total + F.interpolate(y, (h, w), mode='bilinear', align_corners=False)
    probability = torch.softmax(total[0], 0).cpu().numpy()
    crf = dcrf.DenseCRF2D(w, h, len(probability))
    crf.setUnaryEnergy(unary_from_softmax(probability))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.array(image), compat=10)
    return np.argmax(crf.inference(iterations), 0).reshape(h, w)


def npz_bytes(**arrays):
    """Return the size of an uncompressed npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.tell()
