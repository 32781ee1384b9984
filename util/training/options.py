"""Flags of the stages that run a network: device, backbone, batch, optimisation; and which options go where."""

import argparse

import torch

from core import UserError
from core.models import BACKBONES, SEGMENTERS, find_backbone
from core.puzzle import check_puzzle
from core.random_walk import BETA, EXP_TIMES
from util import flags, launcher
from util.flags import REQUIRED, Flag, Parser, boolean, integer, real
from util.parallel import processes
from util.store.formats import RANDOM_WALK


def backbone(text: str) -> str:
    """The name of a backbone: see core/models/backbones.py."""
    try:
        find_backbone(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(f'{error.option} ')) from None
    return text


# Tables of flags ----------------------------------------------------------------------------------------------------

FROM_MODEL = '(default: from the model file)'  # end of a help text
PRECISION = 'network precision; tf32, bf16 and fp16 are meant for recent GPUs, bf16 also for some CPUs'
DEVICE = 'auto (the GPU, of trainers all GPUs, of torchrun one per process; else the CPU), cpu, cuda, cuda:1, ...'
COMPUTING = (
    Flag('run and output', '--device', str, 'auto', DEVICE, 'speed'),
    Flag('run and output', '--precision', ('fp32', 'tf32', 'bf16', 'fp16'), 'fp32', PRECISION),
)
COMPILING = 'compile the network (torch.compile): faster on GPUs, after minutes of compiling'
COMPILE = (Flag('run and output', '--compile', None, False, COMPILING),)
RESIZING = 'resizing backend: pillow (the published pixels) or torch (faster, some bytes off by one)'
SCALES = (
    Flag('inference', '--scales --scale', flags.scales, '0.5,1.0,1.5,2.0', 'image scales, comma-separated'),
    Flag('inference', '--resize', ('pillow', 'torch'), 'pillow', RESIZING),
)
PER_BATCH = 'images per batch (images are grouped by size)'
INFERENCE = (  # of the stages that run a network over a list
    *flags.OUTPUT_FOLDER,
    *COMPUTING,
    *COMPILE,
    Flag('inference', '--batch_size', integer(1), 4, PER_BATCH, 'speed'),
)

NAMES = f'{", ".join(BACKBONES)} or timm/NAME'
NORMS = 'BatchNorm: trained (normal) or frozen (fix)'
BACKBONE = (Flag('model', '--architecture', backbone, 'resnest101', f'backbone: {NAMES}'),)
SEGMENTER = (
    Flag('model', '--architecture', tuple(SEGMENTERS), 'DeepLabv3+', 'segmentation network'),
    Flag('model', '--backbone', backbone, 'resnest101', f'backbone of the network: {NAMES}'),
    Flag('model', '--mode', ('normal', 'fix'), 'fix', NORMS),
    Flag('model', '--use_gn', boolean, True, 'GroupNorm in the head of DeepLabv3+'),
)


# Of a trained network, which its model file describes.
TRAINED = {'default': None, 'affects': 'input'}
TRAINED_BACKBONE = tuple(flag._replace(help=f'{flag.help} {FROM_MODEL}', **TRAINED) for flag in BACKBONE)
TRAINED_SEGMENTER = tuple(flag._replace(help=f'{flag.help} {FROM_MODEL}', **TRAINED) for flag in SEGMENTER)

LARGEST = 'random-walk CAMs are divided by the largest value of all classes (joint) or of their own (class)'
WALK = (
    Flag('inference', '--beta', real(0), BETA, 'exponent of the affinities', RANDOM_WALK.title),
    Flag('inference', '--exp_times', integer(0, 12), EXP_TIMES, 'random-walk steps: 2^exp_times', RANDOM_WALK.title),
    Flag('inference', '--rw_normalization', ('joint', 'class'), 'joint', LARGEST, RANDOM_WALK.title),
    Flag('inference', '--image_size', integer(32, 16384), 512, 'smaller images are padded to this size'),
)

WEIGHTS = 'backbone weights: imagenet, none or a file'
PARTS = 'parts of a batch that pass through the network one at a time: less memory, the same gradients'
EVERY = 'checkpoint interval in iterations (also after each epoch)'
TRAINING = (  # of the three trainers; the scripts have the published values where they differ
    *flags.DATA,
    *flags.WORKERS,
    Flag('model', '--weights', str, 'imagenet', WEIGHTS, 'input'),
    Flag('optimisation', '--batch_size', integer(1), 32, 'images per step, over all GPUs'),
    Flag('optimisation', '--micro_batches', integer(1), 1, PARTS, 'batch'),
    Flag('optimisation', '--max_epoch', integer(1), 15, 'epochs'),
    Flag('optimisation', '--lr', real(0), 0.1, 'initial learning rate'),
    Flag('optimisation', '--wd', real(0), 1e-4, 'weight decay'),
    Flag('optimisation', '--momentum', real(0, 1), 1e-4, 'SGD momentum (published value)'),
    Flag('optimisation', '--nesterov', boolean, True, 'Nesterov momentum'),
    Flag('augmentation', '--image_size', integer(32, 16384), 512, 'side of the crop'),
    Flag('augmentation', '--min_image_size', integer(16, 16384), 320, 'minimum of the random longer side'),
    Flag('augmentation', '--max_image_size', integer(16, 16384), 640, 'maximum of the random longer side'),
    Flag('augmentation', '--resize', ('pillow', 'torch'), 'pillow', RESIZING),
    Flag('run and output', '--tag', flags.folder_name, REQUIRED, 'name of the run and its model'),
    Flag('run and output', '--seed', integer(0, 2**32 - 1), 0, 'random seed'),
    *COMPUTING,
    *COMPILE,
    Flag('run and output', '--print_ratio', real(0, 1), 0.1, 'logging interval, as a fraction of an epoch', 'speed'),
    Flag('run and output', '--save_interval', integer(1), 200, EVERY, 'speed'),
    *flags.OVERWRITE,
)
WHOLE = 'train BatchNorm on the statistics of the whole batch, over all processes'
SELECTED = 'epoch to keep; best: by the mIoU on masks, of CAMs (stage 1) or predictions (without masks: last)'
SUPERVISED = (  # of stages 1 and 7
    Flag('model', '--sync_bn', None, False, WHOLE, 'batch'),
    Flag('loss', '--label_smoothing', real(0, 1), 0.0, 'label smoothing of the classification losses (0: none)'),
    Flag('run and output', '--select', ('best', 'last'), 'best', SELECTED),
)
LABELS = (  # of the trainers that read labels of an earlier stage
    Flag('data', '--label_name', flags.folder_name, REQUIRED, 'folder of labels: of stage 3 for stage 4, of 6 for 7'),
    Flag('data', '--pred_dir', str, 'experiments/predictions/', 'parent of that folder', 'input'),
)

# Options by what takes them (`Options.pick`).
RUNNING = ('tag', 'max_epoch', 'weights', 'image_size', 'print_ratio', 'save_interval', 'overwrite', 'select')  # Run
SHARING = ('batch_size', 'micro_batches', 'bn_replicas', 'sync_bn', 'precision', 'compile')  # SharedModel
SGD = ('lr', 'wd', 'momentum', 'nesterov')  # core.models.build_sgd
NETWORK = ('device', 'precision', 'compile', 'architecture', 'backbone', 'mode', 'use_gn')  # load_network
WALKING = ('beta', 'exp_times', 'rw_normalization')  # core.chain.walk_cams


def parse_training(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse the options of a trainer and check their combinations."""
    args = parser.parse_args(argv)
    if args.min_image_size > args.max_image_size:
        parser.error(f'--min_image_size {args.min_image_size} is above --max_image_size {args.max_image_size}')
    if args.nesterov and args.momentum == 0:
        parser.error('--nesterov True needs --momentum above 0')
    if 'num_pieces' in args:
        with parser.checking_values():
            check_puzzle(args.image_size, args.num_pieces)
    count, parts = launcher.world_size(), args.micro_batches
    if args.batch_size % parts:
        parser.error(f'--micro_batches {parts}: --batch_size {args.batch_size} is not a multiple of it')
    if args.batch_size % count:
        parser.error(f'--batch_size {args.batch_size} is not a multiple of the {count} processes, which share a batch')
    if parts > 1 and parts % count:
        parser.error(f'--micro_batches {parts} is not a multiple of the {count} processes, which share the parts')
    if 'sync_bn' in args:
        _check_batchnorm(parser, args)
    return args


def _check_batchnorm(parser: Parser, args: argparse.Namespace) -> None:
    """Check that BatchNorm that trains sees 2 or more images at once: replicas (stage 1) or parts of a batch (stage 7).

    With --sync_bn it sees the whole batch, so stage 1 has a single replica.
    """
    count, parts = launcher.world_size(), args.micro_batches
    if args.sync_bn and args.mode == 'fix':
        parser.error('--sync_bn: --mode fix has no BatchNorm that trains')
    if args.sync_bn and args.compile:
        parser.error('--compile: the exchanges of --sync_bn cannot be compiled: leave one of them out')
    if args.mode == 'fix':
        return
    if 'bn_replicas' not in args:
        groups = max(parts, count)
        if args.batch_size < 2 * groups:
            of_each = f' for each of {groups} parts' if groups > 1 else ''
            parser.error(f'--batch_size {args.batch_size}: --mode normal trains BatchNorm and needs 2 or more{of_each}')
        if args.sync_bn and parts > 1:
            parser.error('--sync_bn: the statistics of the whole batch need it at once: leave out --micro_batches')
        return
    replicas = args.bn_replicas = 1 if args.sync_bn else args.bn_replicas
    if args.batch_size % replicas:
        parser.error(f'--batch_size {args.batch_size} is not a multiple of --bn_replicas {replicas}')
    if args.batch_size < 2 * replicas:
        parser.error(f'--batch_size {args.batch_size}: --bn_replicas {replicas} needs at least 2 images each')
    if replicas % count and not args.sync_bn:
        others = 'or pass --sync_bn, which trains BatchNorm on the whole batch'
        parser.error(f'--bn_replicas {replicas} is not a multiple of the {count} processes: start fewer, {others}')
    if parts not in (1, replicas):
        parser.error(f'--micro_batches {parts}: with --mode normal the parts are the {replicas} replicas')


def start(args: flags.Options) -> torch.device:
    """Return the device of a trainer's process, which has met the others; see util.parallel.processes.start."""
    return processes.start(args.device, args.seed, args.record())
