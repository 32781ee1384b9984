"""The flags of the dense CRF, of stages 3, 6 and 8. No torch."""

import argparse
from collections.abc import Callable

from util import flags, tile_flags


def kernel(widths: int) -> Callable[[str], str]:
    """Return a flag type: widths and a weight, as text that can be part of a folder's name.

    pydensecrf writes outside its memory if a position divided by a width exceeds its integers.
    """

    def parse(text: str) -> str:
        try:
            *sizes, weight = values = flags.floats(text)
            good = len(sizes) == widths and all(0.1 <= size <= 1e4 for size in sizes) and 0 <= weight <= 1e4
        except ValueError:
            good = False
        if not good:
            what = 'a width' if widths == 1 else f'{widths} widths'
            fault = f'{text!r} is not {what} of 0.1 to 10000 and a weight up to 10000, separated by commas'
            raise argparse.ArgumentTypeError(fault)
        return ','.join(f'{value:g}' for value in values)

    return parse


GAUSSIAN = 'smoothness term of the CRF: WIDTH,WEIGHT (width in pixels; weight 0: off)'
BILATERAL = 'colour term of the CRF: WIDTH,COLOUR,WEIGHT (pixels, levels of 0 to 255; weight 0: off)'
KERNELS = (
    flags.Flag('inference', '--crf_gaussian', kernel(1), '3,3', GAUSSIAN),
    flags.Flag('inference', '--crf_bilateral', kernel(2), '50,5,10', BILATERAL),
)
GT_PROB = 'confidence of the CRF in the label of a pixel (0 to 1); lower values let the CRF change more'
ITERATIONS = 'iterations of the dense CRF (0: no CRF); both names work in every stage'
LABELS = (  # stages 3 and 6
    flags.Flag('inference', '--crf_iteration --iteration', flags.integer(0, 1000), 10, ITERATIONS),
    flags.Flag('inference', '--gt_prob', flags.real(0.01, 0.99), 0.7, GT_PROB),
    *KERNELS,
    *tile_flags.TILE,
)
PREDICTIONS = (  # stage 8
    flags.Flag('inference', '--iteration --crf_iteration', flags.integer(0, 1000), 10, ITERATIONS),
    KERNELS[0],
    KERNELS[1]._replace(default='80,13,10'),
)


def kernels(crf_gaussian: str, crf_bilateral: str) -> dict[str, list[float]]:
    """Return the options of `crf_from_probability` in core/crf.py."""
    return {'gaussian': flags.floats(crf_gaussian), 'bilateral': flags.floats(crf_bilateral)}


def label_options(gt_prob: float, crf_gaussian: str, crf_bilateral: str) -> dict:
    """Return the options of `crf_from_labels` in core/crf.py."""
    return {'gt_prob': gt_prob, **kernels(crf_gaussian, crf_bilateral)}
