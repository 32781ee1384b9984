"""The mean of several CAMs of each image: of several classifiers, or of several read-outs of one.

Reads   experiments/predictions/{cam_dir}/{id}.npz of each folder of stage 2; images of the list --domain
Writes  experiments/predictions/{tag}@{train|val}@mean/{id}.npz: what stage 2 writes, for stages 3, 5 and 9

    python3 -m tools.average_cams --tag two --domain train --cam_dirs a@train@scale=0.5,1.0 b@train@scale=0.5,1.0

Each map of the mean is divided by its maximum again. Whether it helps is a question of the classifiers:
docs/results/readouts.md.
"""

import util.startup

from functools import partial

from core import UserError
from core.data.dataset import open_dataset
from core.maps import average_cams, strided_size
from util import flags, script
from util.parallel.workers import parallel_map
from util.store import CAM, create_folder, open_folder

MEAN = CAM._replace(folder='{tag}@{split}@mean', optional=())


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_table(flags.OUTPUT_FOLDER)
    cams = 'folders of CAMs of stage 2'
    data, run = parser.groups['data'], parser.groups['run and output']
    data.add_argument('--cam_dirs', type=flags.folder_name, nargs='+', required=True, affects='input', help=cams)
    run.add_argument('--tag', type=flags.folder_name, required=True, help='first part of the name of the folder')
    args = parser.parse_args(argv)
    if len(set(args.cam_dirs)) < max(2, len(args.cam_dirs)):
        parser.error(f'--cam_dirs {" ".join(args.cam_dirs)}: name two or more folders, each once')
    return args


def average(image_id, dataset, sources, target):
    """Write the mean of the CAMs of an image."""
    size = dataset.image_size(image_id)
    maps = {'cam': strided_size(size), 'hr_cam': size}
    read = [[source.read_maps(image_id, name, size) for name, size in maps.items()] for source in sources]
    keys = read[0][0][0]
    for source, found in zip(sources, read, strict=True):
        if found[0][0].tolist() != keys.tolist():
            raise UserError(f'{source.file(image_id)}: has other classes than {sources[0].file(image_id)}')
    target.write_maps(image_id, keys, *average_cams([[array for _, array in found] for found in read]))


def main(args):
    dataset = open_dataset(args.dataset, args.data_dir, args.window, args.plane)
    ids = dataset.ids(args.domain, with_images=True)
    sources = [open_folder(CAM, name, '--cam_dirs', dataset, ids) for name in args.cam_dirs]
    inputs = {f'cams_{number}': source for number, source in enumerate(sources, 1)}
    with create_folder(MEAN, args.record(), dataset, ids, **inputs, **args.pick(flags.OUTPUT)) as target:
        todo = [image_id for image_id in target.ids if image_id in target.missing]
        write = partial(average, dataset=dataset, sources=sources, target=target)
        for _ in parallel_map(write, todo, args.num_workers, 'mean CAMs'):
            pass


if __name__ == '__main__':
    script.run(main, parse_args)
