"""Download PASCAL VOC 2012 and verify it.

Reads   the archive VOCtrainval_11-May-2012.tar: train, val and the images of train_aug. Test images come from the VOC
        server (registration needed): add them to JPEGImages. SBD masks are not needed: masks of train_aug are not read
Writes  {out}/VOCdevkit/VOC2012

    python3 -m tools.prepare_voc --out ..               download (2 GB), unpack to ../VOCdevkit/VOC2012, verify
    python3 -m tools.prepare_voc --out .. --tar FILE    the same from a local archive
    python3 -m tools.prepare_voc --check ../VOCdevkit/VOC2012     verify an existing folder
"""

import tarfile
from pathlib import Path, PurePosixPath

from torchvision.datasets.utils import download_url
from torchvision.datasets.voc import DATASET_YEAR_DICT

from core import UserError
from core.data.dataset import open_dataset
from core.data.files import NotRegular, check_regular
from tools.check_dataset import check
from tools.exchange.writing import staged_folder
from util import flags, script

ARCHIVE = DATASET_YEAR_DICT['2012']


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
    """Download the archive of VOC 2012 if none is given, unpack it and return its root."""
    root = out / ARCHIVE['base_dir']
    if root.exists():
        raise UserError(f'--out {out}: {root} already exists: verify it with --check, or delete it')
    if tar is None:
        tar = out / ARCHIVE['filename']
        try:
            download_url(ARCHIVE['url'], out, tar.name, ARCHIVE['md5'])  # none if the file is complete
        except Exception as error:  # urllib and torchvision raise different errors
            hint = f'download {tar.name} elsewhere and pass it as --tar'
            raise UserError(f'VOC 2012 cannot be downloaded ({str(error).splitlines()[0]}): {hint}') from None
    with staged_folder(root, '--out') as staged:
        try:
            check_regular(tar)
            unpack(tar, staged)
        except (FileNotFoundError, IsADirectoryError, NotRegular) as error:
            raise UserError(f'--tar {tar}: {error.strerror}') from None
        except Exception as error:  # tarfile and zlib raise different errors
            raise UserError(f'--tar {tar}: cannot be unpacked ({str(error).splitlines()[0]})') from None
        if not (staged / 'JPEGImages').is_dir():
            raise UserError(f'{tar}: contains no {ARCHIVE["base_dir"]}/JPEGImages: is it the archive of VOC 2012?')
    return root


def unpack(tar, folder):
    """Unpack the part of an archive that is VOC 2012, and nothing else, into a folder."""
    with tarfile.open(tar) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_relative_to(ARCHIVE['base_dir']):
                member.name = str(path.relative_to(ARCHIVE['base_dir']))
                archive.extract(member, folder, filter='data')  # no member leaves the folder


def main(args):
    root = fetch(args.out, args.tar) if args.out else args.check
    # Forked workers may not follow torchvision's threads: verify in this process.
    check(open_dataset(args.dataset, root), num_workers=0, needs_masks=('train', 'val'), quick=args.quick)


if __name__ == '__main__':
    script.run(main, parse_args)
