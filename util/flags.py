"""Command-line flags that stages share, their types, and the groups in which --help lists them. No torch here."""

import argparse
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core import UserError
from util import launcher

REPOSITORY = Path(__file__).resolve().parent.parent
FROM_MODEL = '(default: from the model file)'  # end of a help text
GROUPS = ('data', 'model', 'loss', 'optimisation', 'augmentation', 'inference', 'run and output')


class Parser(argparse.ArgumentParser):
    """--help begins with the script's docstring, lists flags by group and shows every default. No abbreviations.

    Only scripts with `shares_work` run as several processes (torchrun), and then the first one prints for all.
    """

    shares_work = False

    def __init__(self, docstring: str):
        super().__init__(description=docstring, formatter_class=_Formatter, allow_abbrev=False)
        self.groups = {title: self.add_argument_group(title) for title in GROUPS}

    def parse_args(self, *arguments, **more) -> argparse.Namespace:
        return self._check(super().parse_args(*arguments, **more))

    def parse_intermixed_args(self, *arguments, **more) -> argparse.Namespace:
        return self._check(super().parse_intermixed_args(*arguments, **more))

    def _check(self, args: argparse.Namespace) -> argparse.Namespace:
        """Check what does not go with several processes or shards."""
        if launcher.world_size() > 1 and not self.shares_work:
            self.error('cannot share its work among processes: start it with python3 instead of torchrun')
        if 'shard' in args and args.overwrite and launcher.share(args.shard)[1] > 1:
            self.error('--overwrite: with --shard or torchrun it would remove files of other shares: remove the folder')
        return args

    def error(self, message: str):
        self.exit(2, f'{self.prog}: error: {message}\n')

    def exit(self, status: int = 0, message: str | None = None):
        launcher.let_main_speak()
        super().exit(status, message)

    def _print_message(self, message: str, file=None):
        if launcher.is_main():
            super()._print_message(message, file)

    @contextmanager
    def checking_values(self) -> Iterator[None]:
        """Report a UserError raised inside as an error of the flag whose name the message begins with."""
        try:
            yield
        except UserError as error:
            self.error(f'--{error}')


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None:
            return f'{action.help} (required)' if action.required else action.help
        return super()._get_help_string(action)


# Types --------------------------------------------------------------------------------------------------------------


def boolean(text: str) -> bool:
    if text.lower() in ('true', '1', 'yes'):
        return True
    if text.lower() in ('false', '0', 'no'):
        return False
    raise argparse.ArgumentTypeError(f'{text!r} is neither True nor False')


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a flag type: an integer in [low, high]."""

    def parse(text: str) -> int:
        value = _number(text, int, 'an integer')
        return _in_range(value, value >= low and (high is None or value <= high), low, high)

    return parse


def real(low: float, high: float = float('inf')) -> Callable[[str], float]:
    """Return a flag type: a finite number in [low, high]."""

    def parse(text: str) -> float:
        value = _number(text, float, 'a number')
        return _in_range(value, low <= value <= high and abs(value) < float('inf'), low, high)

    return parse


def _number(text: str, kind: type, what: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not {what}') from None


def _in_range(value, inside: bool, low, high):
    if not inside:
        upper = 'or more' if high in (None, float('inf')) else f'to {high}'
        raise argparse.ArgumentTypeError(f'{value} is out of range: {low} {upper}')
    return value


def square(text: str) -> int:
    """A perfect square."""
    value = integer(1)(text)
    if math.isqrt(value) ** 2 != value:
        raise argparse.ArgumentTypeError(f'{value} is not a perfect square (1, 4, 9, 16, ...)')
    return value


def scales(text: str) -> str:
    """'0.5,1.0', kept as typed because it is part of folder names; `floats` gives the numbers."""
    try:
        good = all(0 < value <= 8 for value in floats(text))
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of scales above 0 such as 0.5,1.0,1.5,2.0')
    return text


def floats(text: str) -> list[float]:
    return [float(part) for part in text.split(',')]


def folder_name(text: str) -> str:
    """A tag or the name of a folder under experiments/, not a path."""
    if not text.isprintable() or not text or '/' in text or '\\' in text or text.startswith('.'):
        raise argparse.ArgumentTypeError(f'{text!r} is not a name (no slashes, no leading dot)')
    return text


def kernel(widths: int) -> Callable[[str], str]:
    """Return a flag type: widths above 0 and a weight, as text that can be part of a folder's name."""

    def parse(text: str) -> str:
        try:
            *sizes, weight = values = floats(text)
            good = len(sizes) == widths and all(0 < size < math.inf for size in sizes) and 0 <= weight < math.inf
        except ValueError:
            good = False
        if not good:
            what = 'a width' if widths == 1 else f'{widths} widths'
            raise argparse.ArgumentTypeError(f'{text!r} is not {what} above 0 and a weight, separated by commas')
        return ','.join(f'{value:g}' for value in values)

    return parse


def shard(text: str) -> str:
    """'i/n', the i-th of n shares, counted from 1; `launcher.share` gives the numbers."""
    match = re.fullmatch('([0-9]+)/([0-9]+)', text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f'{text!r} is not i/n with i from 1 to n, such as 1/8')
    return text


# Shared flags -------------------------------------------------------------------------------------------------------


def cpu_count() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def add_data(parser: Parser, data_dir: bool = True) -> None:
    """Add --dataset and, unless the script has its own, --data_dir."""
    group = parser.groups['data']
    voc = REPOSITORY / 'data' / 'voc2012.json'
    group.add_argument('--dataset', default=str(voc), help='data set: JSON of classes and lists, or CSV of images')
    if data_dir:
        layout = 'folder of the images; of JPEGImages, Annotations and SegmentationClass in the VOC layout'
        group.add_argument('--data_dir', default='../VOC2012/', help=layout)


def add_workers(parser: Parser) -> None:
    """Add --num_workers."""
    parser.groups['data'].add_argument(
        '--num_workers', type=integer(0), default=min(4, cpu_count()), help='worker processes (0: main process)'
    )


def add_overwrite(parser: Parser) -> None:
    """Add --overwrite."""
    group = parser.groups['run and output']
    group.add_argument('--overwrite', action='store_true', help='remove existing output of this name and start over')


def add_output_folder(parser: Parser, domain: str = 'train_aug') -> None:
    """Add the flags of the stages that write a file per image; `domain` is the default list."""
    parser.shares_work = True
    add_data(parser)
    parser.groups['data'].add_argument('--domain', default=domain, help='list of images')
    add_workers(parser)
    add_overwrite(parser)
    run = parser.groups['run and output']
    run.add_argument('--repair', action='store_true', help='verify existing files and regenerate damaged ones')
    share = 'i/n: process only the i-th of n shares of the list (i from 1 to n), for job arrays'
    run.add_argument('--shard', type=shard, help=share)


def add_device(parser: Parser, gpus: str = 'one GPU') -> None:
    """Add --device and --precision; `gpus` says which GPUs are used by default."""
    group = parser.groups['run and output']
    default = f'auto ({gpus}; without a GPU the CPU)'
    group.add_argument('--device', default='auto', help=f'{default}, cpu, cuda, cuda:1, ...')
    group.add_argument(
        '--precision',
        default='fp32',
        choices=('fp32', 'tf32', 'bf16', 'fp16'),
        help='network precision; tf32, bf16 and fp16 are meant for recent GPUs, bf16 also for some CPUs',
    )


def add_compile(parser: Parser) -> None:
    """Add --compile."""
    what = 'compile the network (torch.compile): faster on GPUs, after minutes of compiling'
    parser.groups['run and output'].add_argument('--compile', action='store_true', help=what)


def add_resize(group: argparse._ArgumentGroup) -> None:
    """Add --resize."""
    group.add_argument(
        '--resize',
        default='pillow',
        choices=('pillow', 'torch'),
        help='resizing backend: pillow (the published pixels) or torch (faster, some bytes off by one)',
    )


def add_inference(parser: Parser, domain: str = 'train_aug') -> None:
    """Add the flags of the stages that run a network over a list."""
    add_output_folder(parser, domain)
    add_device(parser, 'one GPU; under torchrun one per process')
    add_compile(parser)
    parser.groups['inference'].add_argument(
        '--batch_size', type=integer(1), default=4, help='images per batch (images are grouped by size)'
    )


def add_scales(parser: Parser) -> None:
    """Add --scales and --resize."""
    group = parser.groups['inference']
    group.add_argument(
        '--scales', '--scale', type=scales, default='0.5,1.0,1.5,2.0', help='image scales, comma-separated'
    )
    add_resize(group)


def add_rw_normalization(parser: Parser, default: str | None = 'joint', condition: str = '') -> None:
    """Add --rw_normalization."""
    largest = 'random-walk CAMs are divided by the largest value of all classes (joint) or of their own (class)'
    names = ('joint', 'class')
    help_text = f'{condition}{largest}' if default else f'{condition}{largest} (default: joint)'
    parser.groups['inference'].add_argument('--rw_normalization', default=default, choices=names, help=help_text)


def add_crf_kernels(parser: Parser, bilateral: str) -> None:
    """Add the widths and weights of the dense CRF's kernels; `bilateral` is the default of the second one."""
    group = parser.groups['inference']
    gaussian = 'Gaussian kernel of the CRF: width in pixels,weight'
    both = 'bilateral kernel of the CRF: width in pixels,width in colour levels,weight'
    group.add_argument('--crf_gaussian', type=kernel(1), default='3,3', help=gaussian)
    group.add_argument('--crf_bilateral', type=kernel(2), default=bilateral, help=both)


def add_label_crf(parser: Parser, iterations: int) -> None:
    """Add the flags of the dense CRF that refines label maps in stages 3 and 6."""
    group = parser.groups['inference']
    group.add_argument('--crf_iteration', type=integer(0), default=iterations, help='dense CRF iterations (0: no CRF)')
    gt_prob = 'probability, for the CRF, that the label of a pixel is right'
    group.add_argument('--gt_prob', type=real(0.01, 0.99), default=0.7, help=gt_prob)
    add_crf_kernels(parser, '50,5,10')


def crf_kernels(args: argparse.Namespace) -> dict[str, list[float]]:
    """Return the options of `crf_from_probability` in core/crf.py."""
    return {'gaussian': floats(args.crf_gaussian), 'bilateral': floats(args.crf_bilateral)}


def label_crf(args: argparse.Namespace) -> dict:
    """Return the options of `crf_from_labels` in core/crf.py."""
    return {'gt_prob': args.gt_prob, **crf_kernels(args)}


def add_backbone(parser: Parser, network: str, backbones: Iterable[str]) -> None:
    """Add --architecture of stages 2 and 5."""
    parser.groups['model'].add_argument('--architecture', choices=backbones, help=f'backbone of {network} {FROM_MODEL}')


def add_segmenter(
    parser: Parser, architectures: Iterable[str], backbones: Iterable[str], trained: bool = False
) -> None:
    """Add the flags that describe the network of stages 7 and 8. If it is trained, its model file has the defaults."""
    norms = 'BatchNorm: trained (normal) or frozen (fix)'
    for flag, default, values, what in (
        ('--architecture', 'DeepLabv3+', {'choices': architectures}, 'segmentation network'),
        ('--backbone', 'resnest101', {'choices': backbones}, 'backbone of the network'),
        ('--mode', 'fix', {'choices': ('normal', 'fix')}, norms),
        ('--use_gn', True, {'type': boolean}, 'GroupNorm in the head of DeepLabv3+'),
    ):
        default, what = (None, f'{what} {FROM_MODEL}') if trained else (default, what)
        parser.groups['model'].add_argument(flag, default=default, help=what, **values)


def add_training(parser: Parser, *, lr: float, wd: float, momentum: float, epochs: int, sizes: tuple[int, int]) -> None:
    """Add the flags of the three trainers; the defaults are the published recipe."""
    parser.shares_work = True
    add_data(parser)
    add_workers(parser)

    model = parser.groups['model']
    model.add_argument('--weights', default='imagenet', help='backbone weights: imagenet, none or a file')

    optimisation = parser.groups['optimisation']
    optimisation.add_argument('--batch_size', type=integer(1), default=32, help='images per step, over all GPUs')
    parts = 'parts of a batch that pass through the network one at a time: less memory, the same gradients'
    optimisation.add_argument('--micro_batches', type=integer(1), default=1, help=parts)
    optimisation.add_argument('--max_epoch', type=integer(1), default=epochs, help='epochs')
    optimisation.add_argument('--lr', type=real(0), default=lr, help='initial learning rate')
    optimisation.add_argument('--wd', type=real(0), default=wd, help='weight decay')
    optimisation.add_argument('--momentum', type=real(0, 1), default=momentum, help='SGD momentum (published value)')
    optimisation.add_argument('--nesterov', type=boolean, default=True, help='Nesterov momentum')

    augmentation = parser.groups['augmentation']
    size = integer(16, 16384)
    augmentation.add_argument('--image_size', type=integer(32, 16384), default=512, help='side of the crop')
    augmentation.add_argument('--min_image_size', type=size, default=sizes[0], help='minimum of the random longer side')
    augmentation.add_argument('--max_image_size', type=size, default=sizes[1], help='maximum of the random longer side')
    add_resize(augmentation)

    run = parser.groups['run and output']
    run.add_argument('--tag', type=folder_name, required=True, help='name of the run and its model')
    run.add_argument('--seed', type=integer(0, 2**32 - 1), default=0, help='random seed')
    add_device(parser, 'all visible GPUs; under torchrun one per process')
    add_compile(parser)
    run.add_argument('--print_ratio', type=real(0, 1), default=0.1, help='logging interval, as a fraction of an epoch')
    interval = 'checkpoint interval in iterations (also after each epoch)'
    run.add_argument('--save_interval', type=integer(1), default=200, help=interval)
    add_overwrite(parser)


def add_sync_bn(parser: Parser) -> None:
    """Add --sync_bn of the trainers that train BatchNorm."""
    whole = 'train BatchNorm on the statistics of the whole batch, over all processes'
    parser.groups['model'].add_argument('--sync_bn', action='store_true', help=whole)


def check_replicas(parser: Parser, args: argparse.Namespace) -> None:
    """Check that the BatchNorm replicas of stage 1 share a batch, and the processes the replicas."""
    if args.mode == 'fix':
        return
    replicas, count = args.bn_replicas, launcher.world_size()
    if args.batch_size % replicas:
        parser.error(f'--batch_size {args.batch_size} is not a multiple of --bn_replicas {replicas}')
    if args.batch_size < 2 * replicas:
        parser.error(f'--batch_size {args.batch_size}: --bn_replicas {replicas} needs at least 2 images each')
    if replicas % count and not args.sync_bn:
        others = 'or pass --sync_bn, which trains BatchNorm on the whole batch'
        parser.error(f'--bn_replicas {replicas} is not a multiple of the {count} processes: start fewer, {others}')
    if args.micro_batches not in (1, replicas):
        parser.error(f'--micro_batches {args.micro_batches}: with --mode normal the parts are the {replicas} replicas')


def add_label_name(parser: Parser, what: str) -> None:
    """Add the flags of the trainers that read labels of an earlier stage."""
    group = parser.groups['data']
    group.add_argument('--label_name', type=folder_name, required=True, help=f'folder of {what}')
    group.add_argument('--pred_dir', default='experiments/predictions/', help='parent of that folder')


def add_label_smoothing(parser: Parser, loss: str) -> None:
    """Add --label_smoothing; its default is in util/run.py too."""
    smoothing = f'label smoothing {loss} (0: none)'
    parser.groups['loss'].add_argument('--label_smoothing', type=real(0, 1), default=0.0, help=smoothing)


def parse_training(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse the options of a trainer and check their combinations."""
    args = parser.parse_args(argv)
    if args.min_image_size > args.max_image_size:
        parser.error(f'--min_image_size {args.min_image_size} is above --max_image_size {args.max_image_size}')
    if args.nesterov and args.momentum == 0:
        parser.error('--nesterov True needs --momentum above 0')
    count, parts = launcher.world_size(), args.micro_batches
    if args.batch_size % parts:
        parser.error(f'--micro_batches {parts}: --batch_size {args.batch_size} is not a multiple of it')
    if args.batch_size % count:
        parser.error(f'--batch_size {args.batch_size} is not a multiple of the {count} processes, which share a batch')
    if parts > 1 and parts % count:
        parser.error(f'--micro_batches {parts} is not a multiple of the {count} processes, which share the parts')
    if getattr(args, 'sync_bn', False) and args.mode == 'fix':
        parser.error('--sync_bn: --mode fix has no BatchNorm that trains')
    if getattr(args, 'sync_bn', False) and args.compile:
        parser.error('--compile: the exchanges of --sync_bn cannot be compiled: leave one of them out')
    return args
