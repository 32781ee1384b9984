"""Get PASCAL VOC 2012 and check that it is whole.

    python3 tools/prepare_voc.py --out ..               download (2 GB), unpack to ../VOCdevkit/VOC2012, check
    python3 tools/prepare_voc.py --out .. --tar FILE    the same with an archive that you have
    python3 tools/prepare_voc.py --check ../VOC2012     check a root that is there

The archive VOCtrainval_11-May-2012.tar holds train, val and the images of train_aug. Test images come from the VOC
server (registration needed): put them into JPEGImages too. The SBD masks are not needed: nothing reads masks of
train_aug.
"""

import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import InputError
from core.datasets import image_path, load_info, mask_path, read_image, read_labels, read_mask, xml_path
from tools import UserError, flags, stage


def parse_args(argv=None):
    parser = flags.parser_of(__doc__)
    flags.add_data(parser, data_dir=False)
    parser.add_argument('--out', type=Path, help='folder that gets VOCdevkit/VOC2012')
    parser.add_argument('--tar', type=Path, help='archive to unpack in place of downloading')
    parser.add_argument('--check', type=Path, help='root to check: holds JPEGImages, Annotations, SegmentationClass')
    parser.add_argument('--quick', action='store_true', help='look at names only, not into every file')
    args = parser.parse_args(argv)
    if (args.out is None) == (args.check is None):
        parser.error('pass either --out, to get VOC 2012, or --check, to check what is there')
    if args.tar and not args.out:
        parser.error('--tar needs --out')
    return args


def fetch(out, tar):
    """Download, or unpack a local archive, through torchvision; returns the root."""
    from torchvision.datasets import VOCSegmentation

    root = out / 'VOCdevkit' / 'VOC2012'
    if root.exists():
        raise UserError(f'--out {out}: {root} is there already: check it with --check, or delete it')
    out.mkdir(parents=True, exist_ok=True)
    try:
        if tar:
            with tarfile.open(tar) as archive:
                archive.extractall(out, filter='data')  # no member leaves the folder
        else:
            VOCSegmentation(str(out), year='2012', image_set='trainval', download=True)
    except FileNotFoundError as error:
        raise UserError(f'--tar {tar}: {error.strerror}') from None
    except Exception as error:  # urllib, tarfile, zlib and torchvision each have their own
        what = f'--tar {tar}: cannot be unpacked' if tar else 'VOC 2012 cannot be downloaded'
        hint = '' if tar else ': fetch VOCtrainval_11-May-2012.tar elsewhere and pass it as --tar'
        raise UserError(f'{what} ({str(error).splitlines()[0]}){hint}') from None
    if not (root / 'JPEGImages').is_dir():
        raise UserError(f'{tar or out}: holds no VOCdevkit/VOC2012/JPEGImages: is it the archive of VOC 2012?')
    return root


def faults_of(root, domain, image_id, info, quick):
    """What is wrong with one image of a list: a line for each of image, annotation and mask."""
    paths = [image_path(root, image_id)]
    if domain != 'test':
        paths.append(xml_path(root, image_id))
    if domain in ('train', 'val'):
        paths.append(mask_path(root, image_id))
    faults = [f'{path}: no such file' for path in paths if not path.is_file()]
    if faults or quick:
        return faults
    try:
        image = read_image(paths[0])
        for path in paths[1:]:
            if path.suffix == '.xml':
                read_labels(path, info)
            else:
                read_mask(path, info.num_classes, image.size[::-1])
    except InputError as error:
        faults.append(str(error))
    return faults


def check(root, info, quick):
    """Look at every file that the lists need; raise UserError unless all is well (the test images may be absent)."""
    if not root.is_dir():
        raise UserError(f'--check {root}: no such folder')
    wrong = 0
    for domain in info.lists:
        ids = info.ids(domain)
        if domain == 'test' and not image_path(root, ids[0]).is_file():
            print(f'{domain:10} {len(ids):6} images: not here (they come from the VOC server)')
            continue
        looked = stage.progress(ids, domain)
        faults = [fault for image_id in looked for fault in faults_of(root, domain, image_id, info, quick)]
        print(f'{domain:10} {len(ids):6} images: {"whole" if not faults else f"{len(faults)} faults"}')
        for fault in faults[:20]:
            print(f'  {fault}')
        if len(faults) > 20:
            print(f'  ... and {len(faults) - 20} more')
        wrong += len(faults)
    if wrong:
        raise UserError(f'{root} is not whole: {wrong} faults, listed above')
    print(f'{root} is whole: pass it as --data_dir')


def main(args):
    info = load_info(args.dataset)
    check(fetch(args.out, args.tar) if args.out else args.check, info, args.quick)


if __name__ == '__main__':
    stage.run(main, parse_args(), InputError)
