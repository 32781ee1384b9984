"""What benchmarks/run.py times: data, and for each stage a case, which sets up and returns the work of either way."""

import io
import json
import os
import time
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
from tools.files import write_cam, write_rw

# Data: drawn scenes at VOC's size, with CAMs made from their masks --------------------------------------------------


def draw_data(folder: Path, count: int = 12) -> tuple[object, list[str]]:
    """A data set of 500-pixel scenes with CAMs and walked CAMs as kept here, and as the plain way has them."""
    import cv2
    from core.datasets import load_info, mask_path, read_labels, read_mask, xml_path

    from core.maps import finish_walk, strided_size
    from tools import make_demo_data

    os.chdir(folder)
    options = ['--out', 'data', '--num_train_aug', str(count), '--num_train', str(count), '--num_val', '1']
    if not Path('data/dataset.json').is_file():
        make_demo_data.main(make_demo_data.parse_args([*options, '--size', '500']))
    info = load_info('data/dataset.json')
    ids = info.ids('train')
    for image_id in ids:
        mask = read_mask(mask_path('data', image_id), info.num_classes)
        labels = read_labels(xml_path('data', image_id), info)
        keys = np.concatenate([[0], np.flatnonzero(labels) + 1])
        hr_cam = np.stack([cv2.GaussianBlur((mask == key).astype(np.float32), (0, 0), 25) for key in keys[1:]])
        hr_cam /= hr_cam.max((1, 2), keepdims=True) + 1e-5
        rows, columns = strided_size(mask.shape)
        cam = np.stack([cv2.resize(x, (columns, rows)) for x in hr_cam])
        write_cam(Path(f'cams/{image_id}.npz'), keys, cam, hr_cam)
        write_rw(Path(f'walked/{image_id}.npz'), keys, cam)
        buffer = Path(f'plain/{image_id}.npz')
        buffer.parent.mkdir(exist_ok=True)
        np.savez(buffer, keys=keys, cam=cam, hr_cam=hr_cam, rw=finish_walk(cam, mask.shape))
    return info, ids


# Cases: each sets up and returns what is to be timed ----------------------------------------------------------------


def random_walk_case(way, device, shape):
    import torch

    from benchmarks import reference
    from core.random_walk import random_walk

    torch.set_flush_denormal(True)  # without it the dense form takes over half an hour
    generator = torch.Generator().manual_seed(0)
    edge = (torch.rand(shape, generator=generator) * 0.5).to(device)
    cam = torch.rand(2, *shape, generator=generator).to(device)
    walk = random_walk if way == 'ours' else reference.random_walk
    return lambda: finished(walk(cam, edge), device)


def pairs_case(way, device, what):
    import torch

    from benchmarks import reference
    from core.affinity import PathIndex, affinity_labels

    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(8, 128, 128, generator=generator).to(device).requires_grad_()
    label = torch.randint(0, 21, (8, 128, 128), generator=generator, dtype=torch.uint8).to(device)
    index = PathIndex(10, 128)
    sources, groups = reference.path_indices(10, (128, 128))
    groups_there = [group.to(device) for group in groups]

    def edges():
        edge.grad = None
        if way == 'ours':
            affinity = index.edge_to_affinity(edge)
        else:
            affinity = reference.edge_to_affinity(edge, groups_there)
        affinity.sum().backward()
        finished(edge.grad, device)

    def labels():
        if way == 'ours':
            return finished(affinity_labels(label, index, 20)[0], device)
        pairs = [reference.affinity_pairs(one, sources, groups) for one in label.cpu()]
        return [torch.stack(kind) for kind in zip(*pairs, strict=True)]

    return {'edges': edges, 'labels': labels}[what]


def labels_case(way, device, folder, what, workers):
    from core.datasets import image_path
    from PIL import Image

    import make_affinity_labels
    import make_pseudo_labels
    from benchmarks import reference
    from tools import stage

    info, ids = draw_data(folder)
    ids = ids * 3  # a list so short that one worker waits for the other's last image says little
    args = Namespace(data_dir='data', fg_threshold=0.40, bg_threshold=0.10, threshold=0.35, crf_iteration=1)

    def plain():
        for image_id in ids:
            image = np.array(Image.open(image_path('data', image_id)))
            with np.load(f'plain/{image_id}.npz') as file:
                keys, hr_cam, rw = file['keys'], file['hr_cam'], file['rw']
            if what == 'affinity':
                label = reference.affinity_label(image, keys, hr_cam)
            else:
                index = reference.predict(np.arange(len(keys)), rw, 0.35)
                label = keys[reference.crf_from_label(image, index, len(keys), 1)]
            Image.fromarray(label.astype(np.uint8)).save(f'{image_id}.png')

    def ours():
        if what == 'affinity':
            make = partial(make_affinity_labels.make_label, args=args, info=info, cams=Path('cams'), folder=Path('out'))
        else:
            make = partial(
                make_pseudo_labels.make_label, args=args, info=info, walked=Path('walked'), folder=Path('out')
            )
        list(stage.each(make, ids, workers, what))

    return plain if way == 'plain' else ours


def evaluate_case(way, device, folder, workers):
    import evaluate
    from benchmarks import reference

    info, ids = draw_data(folder)
    info, ids = Namespace(**{**vars(info), 'num_classes': 20}), ids * 4  # as many classes as VOC has
    thresholds = [round(0.05 * i, 2) for i in range(1, 16)]
    if way == 'plain':
        return lambda: reference.sweep(Path('plain'), Path('data/SegmentationClass'), ids, 21, thresholds)
    args = Namespace(data_dir='data', max_th=0.5, threshold=None, num_workers=workers)
    return lambda: evaluate.count(args, 'npy', Path('cams'), ids, info)


def inference_case(way, device, folder, what, network, count, precision='fp32'):
    """Stage 2 ('cam') or stage 8 ('segmentation') as a whole, the model lying ready."""
    import torch
    from core.datasets import image_path, read_labels, xml_path
    from core.networks import Classifier, DeepLabV3Plus
    from PIL import Image
    from tools.checkpoint import save_model
    from tools.experiment import model_path

    import inference_classification
    import inference_segmentation
    from benchmarks import reference

    info, ids = draw_data(folder)
    ids, scales = ids[:count], [0.5, 1.0, 1.5, 2.0]
    Path('data/some.txt').write_text('\n'.join(ids))
    lists = json.loads(Path('data/dataset.json').read_text())
    Path('data/some.json').write_text(json.dumps({**lists, 'lists': {'train': 'some.txt', 'val': 'some.txt'}}))
    torch.manual_seed(0)
    cams = what == 'cam'
    model = Classifier(network, info.num_classes) if cams else DeepLabV3Plus(network, info.num_classes + 1)
    words = '--data_dir data --dataset data/some.json --num_workers 2 --tag timed --overwrite'.split()
    words += ['--device', device, '--precision', precision, '--architecture' if cams else '--backbone', network]
    stage, work = (
        (inference_classification, 'multi_scale_cam') if cams else (inference_segmentation, 'multi_scale_logits')
    )

    def plain():
        for image_id in ids:
            image = Image.open(image_path('data', image_id)).convert('RGB')
            if cams:
                labels = read_labels(xml_path('data', image_id), info)
                keys, cam, hr_cam = reference.multi_scale_cam(model, image, labels, scales)
                np.savez(f'{image_id}.npz', keys=keys, cam=cam, hr_cam=hr_cam)
            else:
                label = reference.segmentation(model, image, scales, 10)
                Image.fromarray(label.astype(np.uint8)).save(f'{image_id}.png')

    if way == 'plain':
        model = model.eval().to(device)
        return plain
    save_model(model, model_path('timed'), architecture=network if cams else f'DeepLabv3+ {network} GN')
    args = stage.parse_args([*words, *(['--domain', 'train'] if cams else [])])
    busy = Busy(device)
    setattr(stage, work, busy.watch(getattr(stage, work)))

    def ours():
        busy.reset()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            stage.main(args)
        return busy.seconds()

    return ours


class Busy:
    """How long a device works on the calls of a function: they return before a GPU is done."""

    def __init__(self, device: str):
        self.on_gpu, self.spans = device.startswith('cuda'), []

    def now(self):
        import torch

        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def watch(self, function):
        def watched(*arguments):
            start = self.now()
            result = function(*arguments)
            self.spans.append((start, self.now()))
            return result

        return watched

    def reset(self):
        self.spans.clear()

    def seconds(self):
        if not self.on_gpu:
            return sum(end - start for start, end in self.spans)
        return sum(start.elapsed_time(end) for start, end in self.spans) / 1000


def loader_case(way, device, folder, normalise, resize='pillow'):
    import torch
    from core.datasets import image_path, read_image
    from core.transforms import Pipeline, RandomCrop, RandomFlip, RandomLongerSide, Window, network_input
    from tools.device import init_worker

    from benchmarks import reference

    _, ids = draw_data(folder)
    paths = [image_path('data', image_id) for image_id in ids]
    sides = np.random.default_rng(0).integers(320, 641, len(ids))
    if way == 'plain':
        torch.set_num_threads(1)
        place = ((0, 0), (0, 0))
        rows = list(zip(paths, sides, strict=True))
        return lambda: [reference.train_sample(path, int(side), side % 2, place) for path, side in rows]
    init_worker(0)
    # The same longer sides as above; where image and crop lie takes no time.
    pipelines = [
        Pipeline(RandomLongerSide(side, side, resize), RandomFlip(), RandomCrop(512)) for side in map(int, sides)
    ]

    def ours():
        for i, (path, pipeline) in enumerate(zip(paths, pipelines, strict=True)):
            image, _ = pipeline(read_image(path), None, (0, 0, i))
            if normalise:
                network_input(Window(image.pixels[None], image.box[None]))

    return ours


def train_case(way, device, what, network='mobilenet_v2', size=256, batch=4, precision='fp32'):
    """Loss and gradients of stages 1 (with its tiles), 4 or 7. Plain: channels first; 4 and 7 look for anomalies."""
    import torch
    import torch.nn.functional as F
    from core.networks import AffinityNet, Classifier, DeepLabV3Plus
    from tools.device import pick_device, place

    import train_classification_with_puzzle as stage1
    from core.affinity import PathIndex, affinity_labels
    from core.losses import affinity_loss

    torch.manual_seed(0)
    images = torch.rand(batch, 3, size, size, device=device)
    makers = {'classifier': Classifier, 'affinitynet': AffinityNet, 'deeplab': DeepLabV3Plus}
    model = makers[what](network).to(device).train()
    if way == 'ours':
        model = place(model, pick_device(device), precision)
    torch.autograd.set_detect_anomaly(way == 'plain' and what != 'classifier')
    if what == 'affinitynet':
        index = PathIndex(10, size // 4)
        label = torch.randint(0, 21, (batch, size // 4, size // 4), dtype=torch.uint8, device=device)

        def loss_of():
            affinity = index.edge_to_affinity(torch.sigmoid(model(images)))
            return affinity_loss(affinity, *affinity_labels(label, index, 20))

    elif what == 'deeplab':
        label = torch.randint(0, 21, (batch, size, size), device=device)

        def loss_of():
            return F.cross_entropy(model(images), label, ignore_index=255)

    else:
        options = Namespace(
            loss_option='cl_pcl_re', num_pieces=4, level='feature', re_loss='L1_Loss', re_loss_option='masking'
        )
        labels = (torch.rand(batch, 20, device=device) < 0.1).float()

        def loss_of():
            return sum(stage1.losses_of(model, images, labels, options, 1).values())

    def step():
        model.zero_grad()
        loss = loss_of()
        loss.backward()
        finished(loss, device)

    return step


def finished(tensor, device):
    """Wait for a GPU."""
    if str(device).startswith('cuda'):
        import torch

        torch.cuda.synchronize()
    return tensor
