"""Command-line flags that stages share, and their types. Imports nothing heavy: `--help` must answer at once."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def parser_of(docstring: str) -> argparse.ArgumentParser:
    """A parser whose --help begins with the script's own docstring and tells every default. No abbreviated flags."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str:
            if action.default is None:
                return f'{action.help} (required)' if action.required else action.help
            return super()._get_help_string(action)

    class Parser(argparse.ArgumentParser):
        def error(self, message: str):
            self.exit(2, f'{self.prog}: error: {message}\n')  # one line; --help tells the rest

    return Parser(description=docstring, formatter_class=Formatter, allow_abbrev=False)


def boolean(text: str) -> bool:
    if text.lower() in ('true', '1', 'yes'):
        return True
    if text.lower() in ('false', '0', 'no'):
        return False
    raise argparse.ArgumentTypeError(f'{text!r} is neither True nor False')


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """A flag type: a whole number in [low, high]."""

    def parse(text: str) -> int:
        value = _number(text, int, 'a whole number')
        return _in_range(value, value >= low and (high is None or value <= high), low, high)

    return parse


def real(low: float, high: float = float('inf')) -> Callable[[str], float]:
    """A flag type: a finite number in [low, high]."""

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


def scales(text: str) -> str:
    """'0.5,1.0': kept as typed, for it is part of folder names; `floats` gives the numbers."""
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
    """A tag or a folder under experiments/: one name, no path."""
    if not text.isprintable() or not text or '/' in text or '\\' in text or text.startswith('.'):
        raise argparse.ArgumentTypeError(f'{text!r} is not a name (no slashes, no leading dot)')
    return text


def add_data(parser: argparse.ArgumentParser, data_dir: bool = True) -> None:
    """--dataset and, where the root is needed and means nothing else, --data_dir."""
    voc = REPOSITORY / 'data' / 'voc2012.json'
    parser.add_argument('--dataset', default=str(voc), help='JSON of class names and list files')
    if data_dir:
        parser.add_argument(
            '--data_dir', default='../VOC2012/', help='root: JPEGImages, Annotations, SegmentationClass'
        )


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--num_workers', type=integer(0), default=4, help='processes that read images; 0: none')


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--overwrite', action='store_true', help='make the output anew, whatever made it before')


def add_making(parser: argparse.ArgumentParser, domain: str = 'train_aug') -> None:
    """What all stages that make a file an image share; `domain` is the default list."""
    add_data(parser)
    parser.add_argument('--domain', default=domain, help='list of images')
    add_workers(parser)
    add_overwrite(parser)
    parser.add_argument('--repair', action='store_true', help='read what is there and make damaged files again')


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--device', default='auto', help='auto (all visible GPUs, else the CPU), cpu, cuda, cuda:1, ...'
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    what = "the network's arithmetic: fp32, or on recent GPUs faster and rougher tf32 or bf16 (bf16 on some CPUs too)"
    parser.add_argument('--precision', default='fp32', choices=('fp32', 'tf32', 'bf16'), help=what)


def add_resize(parser: argparse.ArgumentParser) -> None:
    what = 'who scales images: pillow makes the published pixels; torch is faster, some bytes one level off'
    parser.add_argument('--resize', default='pillow', choices=('pillow', 'torch'), help=what)


def add_scales(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--scales', '--scale', type=scales, default='0.5,1.0,1.5,2.0', help='of the image, joined by commas'
    )
    add_resize(parser)


def add_inference(parser: argparse.ArgumentParser, domain: str = 'train_aug') -> None:
    """What those of them share that have a network."""
    add_making(parser, domain)
    add_device(parser)
    add_precision(parser)
    parser.add_argument('--batch_size', type=integer(1), default=4, help='images of one size that go through together')


def add_segmenter(parser: argparse.ArgumentParser, backbones: Iterable[str]) -> None:
    """The network of stages 7 and 8."""
    networks = ('DeepLabv3+', 'Seg_Model', 'CSeg_Model')
    parser.add_argument('--architecture', default='DeepLabv3+', choices=networks, help='segmentation network')
    parser.add_argument('--backbone', default='resnest101', choices=backbones, help='its backbone')
    parser.add_argument('--mode', default='fix', choices=('normal', 'fix'), help='fix: frozen BatchNorm statistics')
    parser.add_argument('--use_gn', type=boolean, default=True, help='GroupNorm in the head of DeepLabv3+')


def segmenter_name(args: argparse.Namespace) -> str:
    """What its model file says it is, such as 'DeepLabv3+ resnest101 GN'."""
    norm = ' GN' if args.architecture == 'DeepLabv3+' and args.use_gn else ''
    return f'{args.architecture} {args.backbone}{norm}'


def add_training(
    parser: argparse.ArgumentParser, *, lr: float, wd: float, momentum: float, epochs: int, sizes: tuple[int, int]
) -> None:
    """What the three trainers share; the defaults are the published recipe."""
    parser.add_argument('--tag', type=folder_name, required=True, help='name of the run and its model')
    add_data(parser)
    add_workers(parser)
    add_device(parser)
    add_precision(parser)
    parser.add_argument('--seed', type=integer(0, 2**32 - 1), default=0, help='all randomness follows from it')
    parser.add_argument('--batch_size', type=integer(1), default=32, help='images of a step, over all devices')
    parser.add_argument('--max_epoch', type=integer(1), default=epochs, help='passes over the training list')
    parser.add_argument('--lr', type=real(0), default=lr, help='learning rate of the first step')
    parser.add_argument('--wd', type=real(0), default=wd, help='weight decay (not of biases)')
    parser.add_argument('--momentum', type=real(0, 1), default=momentum, help='of SGD; as small as published')
    parser.add_argument('--nesterov', type=boolean, default=True, help='Nesterov momentum')
    parser.add_argument('--image_size', type=integer(32, 16384), default=512, help='side of the crop')
    parser.add_argument('--min_image_size', type=integer(16, 16384), default=sizes[0], help='least longer side drawn')
    parser.add_argument('--max_image_size', type=integer(16, 16384), default=sizes[1], help='largest longer side drawn')
    add_resize(parser)
    parser.add_argument('--print_ratio', type=real(0, 1), default=0.1, help='a log line each such part of an epoch')
    parser.add_argument('--weights', default='imagenet', help="the backbone's: imagenet, none or a file")
    every = 'iterations between saves of all that going on needs (also after each epoch)'
    parser.add_argument('--save_interval', type=integer(1), default=200, help=every)
    add_overwrite(parser)


def add_label_name(parser: argparse.ArgumentParser, what: str) -> None:
    """What the two of them share that learn from labels of an earlier stage."""
    parser.add_argument('--label_name', type=folder_name, required=True, help=f'folder of {what}')
    parser.add_argument('--pred_dir', default='experiments/predictions/', help='where that folder lies')


def parse_training(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options, unless a combination cannot be."""
    args = parser.parse_args(argv)
    if args.min_image_size > args.max_image_size:
        parser.error(f'--min_image_size {args.min_image_size} is above --max_image_size {args.max_image_size}')
    if args.nesterov and args.momentum == 0:
        parser.error('--nesterov True needs --momentum above 0')
    return args
