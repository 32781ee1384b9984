"""The data and the cases that benchmarks/run.py times.

A case sets up one implementation, 'reference' or 'ours', and returns the function to time.
"""

import dataclasses
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks import reference
from core import IGNORE, UserError
from core.affinity import PathIndex, affinity_labels
from core.chain import image_cams, image_probabilities
from core.crf import crf_from_probability
from core.data.dataset import Dataset, open_dataset
from core.data.images import read_image
from core.data.torch_datasets import MultiScaleDataset
from core.data.transforms import PaddedCrop, Pipeline, RandomCrop, RandomFlip, RandomResizeLong, normalize
from core.labels import PSEUDO_THRESHOLD, affinity_label, pseudo_label
from core.losses import affinity_loss, puzzle_losses
from core.maps import present_keys, strided_size, upsample_rw
from core.models import AffinityNet, Classifier, DeepLabV3Plus, build_network
from core.models.model_file import ModelFile
from core.models.network import Network
from core.random_walk import random_walk
from tools import make_demo_data
from util.flags import REPOSITORY
from util.parallel import processes
from util.parallel.batch import SharedModel
from util.parallel.devices import pick_device, release_freed_memory
from util.parallel.workers import BackgroundWriter
from util.store import folders, formats, results
from util.store.files import write_json
from util.store.fingerprints import Record
from util.training.loaders import batches_on_device, init_worker
from util.training.models import load_for_inference, save_model

SCALES = [0.5, 1.0, 1.5, 2.0]

# Data: drawn scenes at VOC's size, with CAMs made from their masks --------------------------------------------------


def draw_data(folder: Path, count: int = 12) -> None:
    """Draw 500-pixel scenes with CAMs and random-walk CAMs, in our files and in the files that the reference reads."""
    sizes = ['--num_train_aug', str(count), '--num_train', str(count), '--num_val', '1', '--size', '500']
    with silence():
        make_demo_data.main(make_demo_data.parse_args(['--out', str(folder / 'data'), *sizes]))
    dataset, ids = open_data(folder)
    cams, random_walks = open_maps(folder, dataset, ids)
    (folder / 'reference').mkdir()
    for image_id in ids:
        mask, keys = dataset.read_mask(image_id), present_keys(dataset.read_labels(image_id))
        hr_cam = np.stack([cv2.GaussianBlur((mask == key).astype(np.float32), (0, 0), 25) for key in keys[1:]])
        hr_cam /= hr_cam.max((1, 2), keepdims=True) + 1e-5
        rows, columns = strided_size(mask.shape)
        cam = np.stack([cv2.resize(scores, (columns, rows)) for scores in hr_cam])
        cams.write_maps(image_id, keys, cam, hr_cam)
        random_walks.write_maps(image_id, keys, cam)
        rw = upsample_rw(cam, mask.shape)
        np.savez(folder / 'reference' / f'{image_id}.npz', keys=keys, cam=cam, hr_cam=hr_cam, rw=rw)


def open_data(folder: Path) -> tuple[Dataset, list[str]]:
    """Return the drawn data set and the ids of the scenes that have CAMs."""
    dataset = open_dataset(folder / 'data' / 'dataset.json', folder / 'data')
    return dataset, dataset.ids('train')


def open_maps(folder: Path, dataset: Dataset, ids: list[str]) -> tuple[folders.Folder, folders.Folder]:
    """Return the folders of CAMs and of random-walk CAMs."""
    return (
        folders.Folder(formats.CAM, folder / 'cams', dataset, ids),
        folders.Folder(formats.RANDOM_WALK, folder / 'random_walks', dataset, ids),
    )


@contextmanager
def silence() -> Iterator[None]:
    """Suppress all output inside."""
    with open(os.devnull, 'w') as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield


# Cases --------------------------------------------------------------------------------------------------------------


def random_walk_case(way: str, device: str, shape: tuple[int, int]) -> Callable:
    torch.set_flush_denormal(True)  # without it the dense form takes more than half an hour
    generator = torch.Generator().manual_seed(0)
    edge = (torch.rand(shape, generator=generator) * 0.5).to(device)
    cam = torch.rand(2, *shape, generator=generator).to(device)
    walk = random_walk if way == 'ours' else reference.random_walk
    return lambda: finished(walk(cam, edge), device)


def pairs_case(way: str, device: str, what: str) -> Callable:
    """Compute the affinities of pixel pairs ('edges') or their labels ('labels')."""
    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(8, 128, 128, generator=generator).to(device).requires_grad_()
    label = torch.randint(0, 21, (8, 128, 128), generator=generator, dtype=torch.uint8).to(device)
    index = PathIndex(10, 128)
    sources, groups = reference.path_indices(10, (128, 128))
    groups_on_device = [group.to(device) for group in groups]

    def edges():
        edge.grad = None
        if way == 'ours':
            affinity = index.edge_to_affinity(edge)
        else:
            affinity = reference.edge_to_affinity(edge, groups_on_device)
        affinity.sum().backward()
        finished(edge.grad, device)

    def labels():
        if way == 'ours':
            return finished(affinity_labels(label, index, 20)[0], device)
        pairs = [reference.affinity_pairs(one, sources, groups) for one in label.cpu()]
        return [torch.stack(kind) for kind in zip(*pairs, strict=True)]

    return {'edges': edges, 'labels': labels}[what]


def labels_case(way: str, device: str, folder: Path, what: str, workers: int) -> Callable:
    """Run stage 3 ('affinity') or stage 6 ('pseudo')."""
    dataset, ids = open_data(folder)
    cams, random_walks = open_maps(folder, dataset, ids)
    ids = ids * 3  # in a shorter list, waiting for the last image would dominate

    def run_reference():
        for image_id in ids:
            image = np.array(Image.open(dataset.image_path(image_id)))
            with np.load(folder / 'reference' / f'{image_id}.npz') as file:
                keys, hr_cam, rw = file['keys'], file['hr_cam'], file['rw']
            if what == 'affinity':
                label = reference.affinity_label(image, keys, hr_cam)
            else:
                index = reference.threshold_cams(np.arange(len(keys)), rw, PSEUDO_THRESHOLD)
                label = keys[reference.crf_from_label(image, index, len(keys), 1)]
            Image.fromarray(label.astype(np.uint8)).save(folder / f'{image_id}.png')

    kind = formats.AFFINITY_LABEL if what == 'affinity' else formats.PSEUDO_LABEL
    labels = folders.Folder(kind, folder / 'labels', dataset, ids)
    labels.missing = set(ids)
    make, maps = (affinity_label, cams) if what == 'affinity' else (pseudo_label, random_walks)

    def make_label(image_id):
        image = np.array(dataset.read_image(image_id))
        return make(image, *maps.read_scores(image_id, image.shape[:2]))

    def run_ours():
        with silence():
            labels.write_missing_labels(make_label, workers)

    return run_ours if way == 'ours' else run_reference


def evaluate_case(way: str, device: str, folder: Path, workers: int) -> Callable:
    """Run the threshold sweep of stage 9."""
    dataset, ids = open_data(folder)
    dataset = dataclasses.replace(dataset, class_names=tuple(map(str, range(20))))  # as many classes as VOC
    ids = ids * 4
    cams, _ = open_maps(folder, dataset, ids)
    thresholds = [round(0.05 * i, 2) for i in range(1, 16)]

    def run_ours():
        with silence():
            return results.count_pixels(cams, dataset, ids, thresholds, workers)

    if way == 'ours':
        return run_ours
    masks = folder / 'data' / 'SegmentationClass'
    return lambda: reference.sweep(folder / 'reference', masks, ids, 21, thresholds)


def inference_case(
    way: str, device: str, folder: Path, what: str, network: str, count: int, precision: str = 'fp32'
) -> Callable:
    """Run stage 2 ('cam') or stage 8 ('segmentation') from batches to files, with random weights."""
    # Fork the processes of the CRF before a GPU is in use.
    writer = LastingWriter(2, processes=what == 'segmentation') if way == 'ours' else None
    dataset, ids = open_data(folder)
    ids = ids[:count]
    meta = {'network': 'Classifier' if what == 'cam' else 'DeepLabv3+', 'mode': 'normal' if what == 'cam' else 'fix'}
    meta |= {'backbone': network, 'classes': dataset.class_names}
    torch.manual_seed(0)
    model = build_network(meta)

    def run_reference():
        for image_id in ids:
            image = Image.open(dataset.image_path(image_id)).convert('RGB')
            if what == 'cam':
                labels = dataset.read_labels(image_id)
                keys, cam, hr_cam = reference.multi_scale_cam(model, image, labels, SCALES)
                np.savez(folder / f'{image_id}.npz', keys=keys, cam=cam, hr_cam=hr_cam)
            else:
                label = reference.segmentation(model, image, SCALES, 10)
                Image.fromarray(label.astype(np.uint8)).save(folder / f'{image_id}.png')

    if way == 'reference':
        model = model.eval().to(device)
        return run_reference
    save_model(model, folder / 'timed.pth', **meta)
    model, place = load_for_inference(ModelFile(folder / 'timed.pth'), meta, device, precision)
    infer = infer_cams if what == 'cam' else infer_predictions

    def run_ours():
        batches = MultiScaleDataset(dataset, ids, set(ids), SCALES, batch_size=4)
        with silence(), writer:
            batches = batches_on_device(batches, 2, place, 'batches')
            return infer(model, batches, dataset, ids, folder / 'timed', writer)

    return run_ours


def infer_cams(model, batches, dataset: Dataset, ids: list[str], path: Path, writer: BackgroundWriter) -> float:
    """Write CAMs as stage 2 does; return the seconds during which the network was busy."""
    cams, busy = folders.Folder(formats.CAM, path, dataset, ids), 0.0
    labels = dict(zip(ids, dataset.read_all_labels(ids), strict=True))
    for batch_ids, images, pixels in batches:
        start = time.perf_counter()
        present = np.stack([labels[image_id] for image_id in batch_ids])
        maps = image_cams(model, pixels, present, images[0].shape[:2])
        busy += time.perf_counter() - start
        for image_id, (cam, hr_cam) in zip(batch_ids, maps, strict=True):
            writer.submit(cams.write_maps, image_id, present_keys(labels[image_id]), cam, hr_cam)
    return busy


def infer_predictions(model, batches, dataset: Dataset, ids: list[str], path: Path, writer: BackgroundWriter) -> float:
    """Write predictions as stage 8 does; return the seconds during which the network was busy."""
    predictions, busy = folders.Folder(formats.PREDICTION, path, dataset, ids), 0.0
    for batch_ids, images, pixels in batches:
        start = time.perf_counter()
        probabilities = image_probabilities(model, pixels, images[0].shape[:2])
        busy += time.perf_counter() - start
        for image_id, image, probability in zip(batch_ids, images, probabilities, strict=True):
            writer.submit(write_prediction, predictions, image_id, image, probability)
    return busy


def write_prediction(predictions: folders.Folder, image_id: str, image: np.ndarray, probability: np.ndarray) -> None:
    refined = crf_from_probability(image, probability, 10)
    predictions.write_label(image_id, refined.argmax(0))


class LastingWriter(BackgroundWriter):
    """Keeps its workers after a run: processes cannot be forked once the GPU is in use."""

    def __exit__(self, kind, *_):
        while self.waiting and kind is None:
            self._wait()


def loader_case(way: str, device: str, folder: Path, normalised: bool, resize: str = 'pillow') -> Callable:
    """Load samples of the training set: decode, resize, flip, crop."""
    dataset, ids = open_data(folder)
    paths = [dataset.image_path(image_id) for image_id in ids]
    sides = np.random.default_rng(0).integers(320, 641, len(ids))
    if way == 'reference':
        torch.set_num_threads(1)
        offsets = ((0, 0), (0, 0))
        rows = list(zip(paths, sides, strict=True))
        return lambda: [reference.train_sample(path, int(side), side % 2, offsets) for path, side in rows]
    init_worker(0)
    # The same longer sides as above. The position of the crop does not affect the time.
    pipelines = [
        Pipeline(RandomResizeLong(side, side, resize), RandomFlip(), RandomCrop(512)) for side in map(int, sides)
    ]

    def run_ours():
        for i, (path, pipeline) in enumerate(zip(paths, pipelines, strict=True)):
            image, _ = pipeline(read_image(path), None, (0, 0, i))
            if normalised:
                normalize(PaddedCrop(image.pixels[None], image.box[None]))

    return run_ours


def train_case(
    way: str,
    device: str,
    what: str,
    network: str = 'mobilenet_v2',
    size: int = 256,
    batch: int = 4,
    precision: str = 'fp32',
) -> Callable:
    """Compute loss and gradients of stage 1 with tiles ('classifier'), stage 4 ('affinitynet') or stage 7 ('deeplab').

    The reference does not use channels last, and runs stages 4 and 7 under anomaly detection.
    """
    torch.manual_seed(0)
    images = torch.rand(batch, 3, size, size, device=device)
    model = build(what, network)
    if way == 'ours':
        network = share(what, model, pick_device(device), batch, precision=precision)
    else:
        network = model.to(device).train()
    torch.autograd.set_detect_anomaly(way == 'reference' and what != 'classifier')
    compute_loss = LOSSES[what](network, images)

    def step():
        model.zero_grad()
        loss = compute_loss()
        loss.backward()
        finished(loss, device)

    return step


def build(what: str, network: str) -> Network:
    if what == 'affinitynet':
        return AffinityNet(network)
    return Classifier(network, 20) if what == 'classifier' else DeepLabV3Plus(network, 21)


def share(what: str, model: Network, device: torch.device, batch: int, replicas: int = 1, **options) -> SharedModel:
    """Return a network shared as its trainer shares it."""
    return SharedModel(
        model, device, batch_size=batch, bn_replicas=replicas, whole_batch=what == 'classifier', **options
    )


def classifier_loss(network: Callable, images: Tensor) -> Callable[[], Tensor]:
    labels = (torch.rand(len(images), 20, device=images.device) < 0.1).float()
    return lambda: sum(puzzle_losses(network, images, labels).values())


def affinitynet_loss(network: Callable, images: Tensor) -> Callable[[], Tensor]:
    side = images.shape[-1] // 4
    index = PathIndex(10, side)
    label = torch.randint(0, 21, (len(images), side, side), dtype=torch.uint8, device=images.device)

    def compute():
        affinity = index.edge_to_affinity(torch.sigmoid(network(images)))
        return affinity_loss(affinity, *affinity_labels(label, index, 20))

    return compute


def deeplab_loss(network: Callable, images: Tensor) -> Callable[[], Tensor]:
    label = torch.randint(0, 21, (len(images), *images.shape[2:]), device=images.device)
    return lambda: F.cross_entropy(network(images), label, ignore_index=IGNORE)


LOSSES = {'classifier': classifier_loss, 'affinitynet': affinitynet_loss, 'deeplab': deeplab_loss}


def micro_batches_case(
    way: str, device: str, what: str, network: str = 'resnet50', size: int = 256, batch: int = 16, parts: int = 4
) -> Callable:
    """Compute loss and gradients of a batch in micro-batches ('ours') or at once ('reference'): equal results."""
    torch.manual_seed(0)
    images = torch.rand(batch, 3, size, size, device=device)
    micro_batches = parts if way == 'ours' else 1
    model = build(what, network)
    shared = share(what, model, pick_device(device), batch, replicas=parts, micro_batches=micro_batches)
    if what == 'classifier':
        return lambda: finished(classifier_loss(shared, images)().backward(), device)

    def step():
        for part in shared.micro_batches({'images': images}):
            (LOSSES[what](shared, part['images'])() / shared.chunks).backward()
        finished(None, device)

    return step


def share_steps(what: str, count: int, device: str, batch: int = 32, size: int = 256, steps: int = 3) -> float:
    """Return the total CPU seconds of a trainer's step that `count` processes share.

    The processes share cores, so wall time would be meaningless. CPU time covers all computation and exchange.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    shares = [(rank, count, port, what, device, batch, size, steps, queue) for rank in range(count)]
    started = [context.Process(target=take_steps, args=share) for share in shares]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise UserError(f'{what}, {count} processes: one of them failed (its error is printed above)')
    return sum(queue.get() for _ in started) / steps


def take_steps(rank, count, port, what, device, batch, size, steps, queue) -> None:
    """Act as one of several processes of torchrun: put the CPU seconds of some steps into the queue."""
    where = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': count, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    os.environ.update({name: str(value) for name, value in where.items()} if count > 1 else {})
    torch.set_num_threads(1)
    place = processes.start(device, 0, Record({}, {}, {}))
    network = share(what, build(what, 'mobilenet_v2'), place, batch, replicas=4)
    images = torch.rand(batch, 3, size, size, device=place)
    if what != 'classifier':  # each process runs whole BatchNorm replicas and gathers all class maps
        images = processes.own(images)
    compute_loss = LOSSES[what](network, images)
    start = 0.0
    for step in range(steps + 1):
        if step == 1:  # after a warm-up
            start = time.process_time()
        network.model.zero_grad()
        compute_loss().backward()
    queue.put(time.process_time() - start)
    processes.end()


def finished(tensor: Tensor | None, device: str) -> Tensor | None:
    """Wait until a GPU has finished its work."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return tensor


# Memory of the stages that write files ------------------------------------------------------------------------------


CLASSES = tuple(f'class{i:02}' for i in range(20))
CAMS, RANDOM_WALKS = 'cl@train@scale=0.5,1.0,1.5,2.0', 'aff@train@beta=10@exp_times=8@rw'

# The program of each stage and the end of its command.
PREDICT = 'tools.predict'
FILE_STAGES = {
    'stage 2': ('inference_classification.py', ['--tag', 'cl']),
    'stage 3': ('make_affinity_labels.py', ['--experiment_name', CAMS]),
    'stage 5': ('inference_rw.py', ['--model_name', 'aff', '--cam_dir', CAMS]),
    'stage 6': ('make_pseudo_labels.py', ['--experiment_name', RANDOM_WALKS]),
    'stage 8': ('inference_segmentation.py', ['--tag', 'seg']),
    'tools.predict as stages 2, 5, 6': (PREDICT, ['cl', '--affinity', 'experiments/models/aff.pth']),
    'tools.predict as stage 8': (PREDICT, ['seg']),
}


def stage_case(way: str, device: str, folder: Path, stage: str, size: tuple[int, int], tagged: int) -> Callable:
    """Run a stage on one photograph of a size (width, height) with some of 20 classes; mobilenet_v2, no workers."""
    folder = folder / f'{stage}-{size[0]}x{size[1]}-{tagged}'
    folder.mkdir()
    os.chdir(folder)  # the stage reads and writes experiments/ in the working directory
    draw_photograph(size, tagged)
    torch.manual_seed(0)
    for tag, kind in (('cl', 'Classifier'), ('aff', 'AffinityNet'), ('seg', 'DeepLabv3+')):
        meta = {'network': kind, 'backbone': 'mobilenet_v2', 'classes': CLASSES, 'image_size': 512}
        save_model(build_network(meta), formats.model_path(tag), **meta)

    program, line = FILE_STAGES[stage]
    if program == PREDICT:
        line = [f'experiments/models/{line[0]}.pth', 'photo.png', *line[1:]]
        line += ['--classes', ','.join(CLASSES[:tagged])] if '--affinity' in line else []
    else:
        line = [*'--dataset set.json --data_dir . --num_workers 0 --domain train --overwrite'.split(), *line]
    if not program.startswith('make_'):
        line += ['--device', device]
    with suppress(SystemExit):
        execute(program, ['--help'])  # imports are not timed
    release_freed_memory()
    return lambda: execute(program, line)


def execute(program: str, words: list[str]) -> None:
    """Run a stage, or a module of tools, in this process, with the same arguments as on a command line."""
    before, sys.argv = sys.argv, [program, *words]
    try:
        with silence():
            if program.endswith('.py'):
                runpy.run_path(str(REPOSITORY / program), run_name='__main__')
            else:
                runpy.run_module(program, run_name='__main__')
    finally:
        sys.argv = before


def draw_photograph(size: tuple[int, int], tagged: int) -> None:
    """Write a photograph with the texture of real ones, its tags and its maps into the working directory."""
    width, height = size
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    texture = rng.normal(0, 5, (height, width, 3)).astype(np.float32)
    Image.fromarray(np.clip(smooth + texture, 0, 255).astype(np.uint8)).save('photo.png')
    Path('labels.csv').write_text(f'id,classes\nphoto,{";".join(CLASSES[:tagged])}\n')
    Path('train.txt').write_text('photo\n')
    description = {'classes': CLASSES, 'lists': {'train': 'train.txt', 'val': 'train.txt'}}
    write_json(Path('set.json'), {**description, 'images': '{id}.png', 'labels': 'labels.csv'})

    dataset = open_dataset('set.json', '.')
    for kind, name in ((formats.CAM, CAMS), (formats.RANDOM_WALK, RANDOM_WALKS)):
        folder = folders.Folder(kind, formats.PREDICTIONS / name, dataset, ['photo'])
        folder.path.mkdir(parents=True)
        blobs = rng.random((tagged, 4, 4)).astype(np.float32)
        sizes = {'cam': strided_size((height, width)), 'rw': strided_size((height, width)), 'hr_cam': (height, width)}
        maps = [np.stack([cv2.resize(blob, sizes[map_][::-1]) for blob in blobs]) for map_ in kind.maps]
        folder.write_maps('photo', np.arange(tagged + 1), *maps)
