"""Download PASCAL VOC 2012 and verify it.

Reads   the archive VOCtrainval_11-May-2012.tar: train, val and the images of train_aug. Test images come from the VOC
        server (registration needed): add them to JPEGImages. SBD masks are not needed: masks of train_aug are not read
Writes  {out}/VOCdevkit/VOC2012

    python3 -m tools.prepare_voc --out ..               download (2 GB), unpack to ../VOCdevkit/VOC2012, verify
    python3 -m tools.prepare_voc --out .. --tar FILE    the same from a local archive
    python3 -m tools.prepare_voc --check ../VOCdevkit/VOC2012     verify an existing folder
"""

import tarfile
from pathlib import Path

from torchvision.datasets import VOCSegmentation

from core import UserError
from core.data.dataset import open_dataset
from core.data.files import NotRegular, check_regular
from tools.check_dataset import check
from util import flags, script
from util.store.files import make_folder


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.DATASET)
    data = parser.groups['data']
    data.add_argument('--tar', type=Path, help='archive to unpack instead of downloading')
    run = parser.groups['run and output']
    run.add_argument('--out', type=Path, help='parent of VOCdevkit/VOC2012')
    run.add_argument('--check', type=Path, help='folder of JPEGImages, Annotations, SegmentationClass to verify')
    run.add_argument('--quick', action='store_true', help='verify only that the files exist')
    args = parser.parse_args(argv)
    if (args.out is None) == (args.check is None):
        parser.error('pass either --out, to get VOC 2012, or --check, to verify an existing folder')
    if args.tar and not args.out:
        parser.error('--tar needs --out')
    return args


def fetch(out, tar):
    """Download VOC 2012 through torchvision, or unpack a local archive; return its root."""
    root = out / 'VOCdevkit' / 'VOC2012'
    if root.exists():
        raise UserError(f'--out {out}: {root} already exists: verify it with --check, or delete it')
    make_folder(out)
    try:
        if tar:
            check_regular(tar)
            with tarfile.open(tar) as archive:
                archive.extractall(out, filter='data')  # no member leaves the folder
        else:
            VOCSegmentation(str(out), year='2012', image_set='trainval', download=True)
    except (FileNotFoundError, IsADirectoryError, NotRegular) as error:
        raise UserError(f'--tar {tar}: {error.strerror}') from None
    except Exception as error:  # urllib, tarfile, zlib and torchvision raise different errors
        what = f'--tar {tar}: cannot be unpacked' if tar else 'VOC 2012 cannot be downloaded'
        hint = '' if tar else ': download VOCtrainval_11-May-2012.tar elsewhere and pass it as --tar'
        raise UserError(f'{what} ({str(error).splitlines()[0]}){hint}') from None
    if not (root / 'JPEGImages').is_dir():
        raise UserError(f'{tar or out}: contains no VOCdevkit/VOC2012/JPEGImages: is it the archive of VOC 2012?')
    return root


def main(args):
    root = fetch(args.out, args.tar) if args.out else args.check
    # Forked workers may not follow torchvision's threads: verify in this process.
    check(open_dataset(args.dataset, root), num_workers=0, needs_masks=('train', 'val'), quick=args.quick)


if __name__ == '__main__':
    script.run(main, parse_args)
