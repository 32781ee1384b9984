"""Flags of the stages that run a network: device, backbone, batch, optimisation; and the options of each function."""

import argparse

from core import UserError
from core.cam import READ_OUTS
from core.models import BACKBONES, SEGMENTERS, find_backbone
from core.puzzle import check_puzzle
from core.random_walk import BETA, EXP_TIMES
from util import flags, launcher, tile_flags
from util.flags import REQUIRED, Flag, Parser, boolean, integer, real
from util.store.formats import RANDOM_WALK


def backbone(text: str) -> str:
    """The name of a backbone: see core/models/backbones.py."""
    try:
        find_backbone(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(f'{error.option} ')) from None
    return text


# Tables of flags ----------------------------------------------------------------------------------------------------

FROM_MODEL = '(default: as in the model file)'  # the end of a help text
PRECISION = 'arithmetic of the network; tf32, bf16 and fp16 are meant for recent GPUs, bf16 also for some CPUs'
DEVICE = 'auto, cpu, cuda or cuda:N; auto: the GPU (trainers: all GPUs; torchrun: one per process), or else the CPU'
COMPUTING = (
    Flag('run and output', '--device', str, 'auto', DEVICE, 'speed'),
    Flag('run and output', '--precision', ('fp32', 'tf32', 'bf16', 'fp16'), 'fp32', PRECISION),
)
COMPILING = 'compile the network with torch.compile: minutes to start; slower on the CPU measured, never run on a GPU'
COMPILE = (Flag('run and output', '--compile', None, False, COMPILING),)
RESIZING = 'pillow: the pixels of the published code; torch: 4 times as fast, one byte in 300 differs by 1'
SCALES = (
    Flag('inference', '--scales --scale', flags.scales, '0.5,1.0,1.5,2.0', 'scales of the image, comma-separated'),
    Flag('inference', '--resize', ('pillow', 'torch'), 'pillow', RESIZING),
)
PER_BATCH = 'images of one size that pass through the network together'
READING = 'published: all weights of the classifier; positive: its positive weights alone; mean: the mean of both CAMs'
READ_OUT = (Flag('inference', '--cam', READ_OUTS, 'published', READING),)
INFERENCE = (  # stages that run a network over a list
    *flags.OUTPUT_FOLDER,
    *COMPUTING,
    *COMPILE,
    Flag('inference', '--batch_size', integer(1), 4, PER_BATCH, 'speed'),
    *tile_flags.TILE,
)

NAMES = f'{", ".join(BACKBONES)} or timm/NAME'
NORMS = 'normal: train BatchNorm; fix: freeze its running statistics, still train its scale and shift'
BACKBONE = (Flag('model', '--architecture', backbone, 'resnest101', f'backbone: {NAMES}'),)
SEGMENTER = (
    Flag('model', '--architecture', tuple(SEGMENTERS), 'DeepLabv3+', 'segmentation network'),
    Flag('model', '--backbone', backbone, 'resnest101', f'backbone of the network: {NAMES}'),
    Flag('model', '--mode', ('normal', 'fix'), 'fix', NORMS),
    Flag('model', '--use_gn', boolean, True, 'GroupNorm instead of BatchNorm in the head of DeepLabv3+: True or False'),
)


# A trained network, which its model file describes.
TRAINED = {'default': None, 'affects': 'input'}
TRAINED_BACKBONE = tuple(flag._replace(help=f'{flag.help} {FROM_MODEL}', **TRAINED) for flag in BACKBONE)
TRAINED_SEGMENTER = tuple(flag._replace(help=f'{flag.help} {FROM_MODEL}', **TRAINED) for flag in SEGMENTER)

LARGEST = 'joint: one maximum for all classes of an image (published); class: one per class, keeps the weaker of two'
STEEPNESS = 'exponent of the affinities: larger values stop the walk at weaker edges (20 for few photographs)'
PADDING = 'smaller images are padded to this size: the --image_size of stage 4'
WALK = (
    Flag('inference', '--beta', real(0), BETA, STEEPNESS, RANDOM_WALK.title),
    Flag('inference', '--exp_times', integer(0, 12), EXP_TIMES, 'random-walk steps: 2^exp_times', RANDOM_WALK.title),
    Flag('inference', '--rw_normalization', ('joint', 'class'), 'joint', LARGEST, RANDOM_WALK.title),
    Flag('inference', '--image_size', integer(32, 16384), 512, PADDING),
)

WEIGHTS = 'initial weights of the backbone: imagenet (download), none (random) or a file'
PARTS = 'parts of a batch that pass through the network one at a time, to save memory (in stage 1: 1 or --bn_replicas)'
LOGGED = 'interval between lines of the log, as a fraction of an epoch'
EVERY = 'iterations between checkpoints; each epoch ends with one too'
STEP = 'images per optimisation step, over all GPUs and processes'
MOMENTUM = "SGD momentum; the default is the published code's, perhaps an accident; with 0.9, lower --lr"
SHORTEST = 'before the crop, the longer side of an image is scaled to a random length from this to --max_image_size'
LONGEST = 'upper end of the random longer side, in pixels'
TRAINING = (  # the three trainers; scripts with other published values set them
    *flags.DATA,
    *flags.WORKERS,
    Flag('model', '--weights', str, 'imagenet', WEIGHTS, 'input'),
    Flag('optimisation', '--batch_size', integer(1), 32, STEP),
    Flag('optimisation', '--micro_batches', integer(1), 1, PARTS, 'batch'),
    Flag('optimisation', '--max_epoch', integer(1), 15, 'epochs'),
    Flag('optimisation', '--lr', real(0), 0.1, 'initial learning rate'),
    Flag('optimisation', '--wd', real(0), 1e-4, 'weight decay'),
    Flag('optimisation', '--momentum', real(0, 1), 1e-4, MOMENTUM),
    Flag('optimisation', '--nesterov', boolean, True, 'Nesterov momentum: True or False'),
    Flag('augmentation', '--image_size', integer(32, 16384), 512, 'side of the square crop in pixels'),
    Flag('augmentation', '--min_image_size', integer(16, 16384), 320, SHORTEST),
    Flag('augmentation', '--max_image_size', integer(16, 16384), 640, LONGEST),
    Flag('augmentation', '--resize', ('pillow', 'torch'), 'pillow', RESIZING),
    Flag('run and output', '--tag', flags.folder_name, REQUIRED, 'name of the run and its model'),
    Flag('run and output', '--seed', integer(0, 2**32 - 1), 0, 'random seed'),
    *COMPUTING,
    *COMPILE,
    Flag('run and output', '--print_ratio', real(0, 1), 0.1, LOGGED, 'speed'),
    Flag('run and output', '--save_interval', integer(1), 200, EVERY, 'speed'),
    *flags.OVERWRITE,
)
WHOLE = 'train BatchNorm on the whole batch of all processes and GPUs (not tried on several GPUs)'
SELECTED = 'epoch to keep: best (by pixel masks: mIoU of CAMs in stage 1, of predictions in stage 7) or last'
SMOOTHING = 'soften the targets by this share, towards 1/2 (stage 1) or all classes alike (stage 7); 0: off'
SUPERVISED = (  # stages 1 and 7
    Flag('model', '--sync_bn', None, False, WHOLE, 'batch'),
    Flag('loss', '--label_smoothing', real(0, 1), 0.0, SMOOTHING),
    Flag('run and output', '--select', ('best', 'last'), 'best', SELECTED),
)
LABEL_FOLDER = 'folder of labels, of stage 3 (for stage 4) or stage 6 (for stage 7, or ground_truth: the masks)'
LABELS = (  # trainers that read labels of an earlier stage
    Flag('data', '--label_name', flags.folder_name, REQUIRED, LABEL_FOLDER),
    Flag('data', '--pred_dir', str, 'experiments/predictions/', 'folder that contains --label_name', 'input'),
)

# Options by the function or class that takes them (`Options.pick`).
RUNNING = ('tag', 'max_epoch', 'image_size', 'print_ratio', 'save_interval', 'overwrite', 'select')  # Run
SHARING = ('batch_size', 'micro_batches', 'bn_replicas', 'sync_bn', 'precision', 'compile')  # SharedModel
SGD = ('lr', 'wd', 'momentum', 'nesterov')  # core.models.build_sgd
NETWORK = ('device', 'precision', 'compile', 'architecture', 'backbone', 'mode', 'use_gn')  # load_network
WALKING = ('beta', 'exp_times', 'rw_normalization', 'tile')  # core.chain.walk_cams


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
    """Check that trained BatchNorm gets at least 2 images at once: per replica (stage 1) or part of a batch (stage 7).

    With --sync_bn it normalises the whole batch, so stage 1 has a single replica.
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
