"""Draw the figures of the documents: three SVGs from the tables below, and pictures from outputs.

Reads   nothing for the SVGs; for two pictures an experiments folder after `bash tools/quickstart.sh` (seed 0); for the
        photograph the folder of tools.predict with --affinity
Writes  docs/method.svg, docs/stages.svg, docs/gain.svg; docs/strip.png, docs/thresholds.png; docs/photograph.png

    python3 -m docs.make_figures
    python3 -m docs.make_figures --pictures experiments
    python3 -m docs.make_figures --photograph chelsea.png experiments/predict/MODEL

The SVGs are readable in light and dark mode: they draw their own background and follow prefers-color-scheme.
"""

import argparse
import io
from html import escape
from math import exp
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.data.dataset import open_dataset
from core.data.drawing import ink, overlay_heatmap, overlay_mask, stack
from core.data.images import read_image
from core.labels import pseudo_label
from core.maps import upsample_rw
from core.metrics import ConfusionMatrix
from util.store.arrays import read_arrays

DOCS = Path('docs')
STRIP, THRESHOLDS = 'train_00044', 'train_00216'  # scenes of the quickstart, seed 0

STYLE = """
  .page { fill: #ffffff } .ink { fill: #1f2328 } .soft { fill: #59636e } .line { stroke: #59636e; fill: none }
  .train { fill: #ddf4ff; stroke: #0969da } .run { fill: #dafbe1; stroke: #1a7f37 }
  .cpu { fill: #fff8c5; stroke: #9a6700 } .loss { fill: #ffebe9; stroke: #cf222e } .head { fill: #59636e }
  .grid { stroke: #d1d9e0 } .good { fill: #1a7f37; stroke: #1a7f37 } .bad { fill: #cf222e; stroke: #cf222e }
  text { font-family: -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif }
  .code { font-family: ui-monospace, Menlo, Consolas, monospace }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .ink { fill: #f0f6fc } .soft { fill: #9198a1 } .line { stroke: #9198a1 }
    .train { fill: #121d2f; stroke: #4493f8 } .run { fill: #12261e; stroke: #3fb950 }
    .cpu { fill: #272115; stroke: #d29922 } .loss { fill: #25171c; stroke: #f85149 } .head { fill: #9198a1 }
    .grid { stroke: #3d444d } .good { fill: #3fb950; stroke: #3fb950 } .bad { fill: #f85149; stroke: #f85149 }
  }"""

# The stages in order: script, purpose, output under experiments/ (util/store/formats.py).
STAGES = (
    ('train_classification_with_puzzle.py', 'classifier, from image tags', 'models/{tag}.pth'),
    ('inference_classification.py', 'CAMs of every image', 'predictions/{tag}@train@scale=...'),
    ('make_affinity_labels.py', 'confident pixels of the CAMs', 'predictions/...@aff_fg=..._bg=...'),
    ('train_affinitynet.py', 'edges, from confident pixels', 'models/{tag}.pth'),
    ('inference_rw.py', 'random walk of the CAMs', 'predictions/...@beta=...@rw'),
    ('make_pseudo_labels.py', 'pseudo-labels: threshold, CRF', 'predictions/...@rw@crf=1'),
    ('train_segmentation.py', 'DeepLabv3+, from pseudo-labels', 'models/{tag}.pth'),
    ('inference_segmentation.py', 'predictions, CRF', 'predictions/{tag}@val@scale=...'),
    ('evaluate.py', 'mIoU of outputs of 2, 5, 6 or 8', 'results/...@{train|val}.json'),
)

# Gain in mIoU of all three losses over L_cls alone (docs/results/): label, setting, gains by seed where they are
# recorded, mean, 95 % interval (Student's t over paired seeds; None: a single seed).
GAINS = (
    ('Drawn scenes', 'one learning rate for both, 4 seeds', (4.08, 4.38, 5.17, 3.71), 4.34, (3.35, 5.32)),
    ('Drawn scenes', 'each at its own learning rate, 3 seeds', (), 2.74, (1.84, 3.65)),
    ('Photographs, tiles of 128', 'efficientnet_lite0, 3 seeds', (), -3.00, (-4.95, -1.05)),
    ('Photographs, tiles of 128', 'mobilenet_v2, 3 seeds', (), -3.48, (-4.91, -2.06)),
    ('Photographs, tiles of 256', 'efficientnet_lite0, 3 seeds', (-0.66, -0.79, -0.42), -0.62, (-1.10, -0.15)),
    ('Photographs, tiles of 256', 'mobilenet_v2, mode normal, 1 seed', (-0.72,), None, None),
    ('Photographs, tiles of 256', 'mobilenet_v2, mode fix, 1 seed', (-1.10,), None, None),
)


# SVG ----------------------------------------------------------------------------------------------------------------


def svg(width, height, title, *parts):
    """Return a document with a background, the styles and an arrow head."""
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path class="head" d="M0 0 10 5 0 10z"/></marker></defs>'
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f'<title>{escape(title)}</title>',
        f'<style>{STYLE}\n</style>',
        arrow,
        f'<rect class="page" width="{width}" height="{height}" rx="8"/>',
        *parts,
        '</svg>\n',
    ]
    return '\n'.join(lines)


def text(x, y, words, size=14, style='ink', anchor='middle', weight='normal'):
    """Return a line of text; a tspan inside is kept."""
    words = words if '<tspan' in words else escape(words)
    return (
        f'<text class="{style}" x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{words}</text>'
    )


def lower(name, index):
    """Return a symbol with an index below the line."""
    return f'{name}<tspan dy="5" font-size="75%">{index}</tspan>'


def rectangle(x, y, w, h, style, rx=6):
    return f'<rect class="{style}" x="{x}" y="{y}" width="{w}" height="{h}" rx="{rx}" stroke-width="1.5"/>'


def arrow(points, both=False):
    """Return a line through points with an arrow head at its end, or at both ends."""
    start = ' marker-start="url(#arrow)"' if both else ''
    path = 'M' + ' L'.join(f'{x} {y}' for x, y in points)
    return f'<path class="line" stroke-width="1.8" d="{path}" marker-end="url(#arrow)"{start}/>'


def scene(x, y, size, clip):
    """Return a cow on a meadow, in a square: what the diagram's classifier sees."""
    s = size / 100
    shapes = (
        '<rect width="100" height="100" fill="#9ecbff"/><rect y="62" width="100" height="38" fill="#7bb274"/>'
        '<g fill="#8a5a3c"><ellipse cx="47" cy="55" rx="27" ry="15"/><circle cx="79" cy="41" r="11"/>'
        '<rect x="26" y="62" width="7" height="22"/><rect x="60" y="62" width="7" height="22"/></g>'
        '<ellipse cx="42" cy="52" rx="9" ry="6" fill="#f4eee6"/><circle cx="82" cy="38" r="2" fill="#111"/>'
    )
    inside = f'<clipPath id="{clip}"><rect width="100" height="100"/></clipPath>'
    return f'<g transform="translate({x} {y}) scale({s})">{inside}<g clip-path="url(#{clip})">{shapes}</g></g>'


def heat(x, y, size, spots, cells=8, first=(0, 0), of=8):
    """Return a map of cells x cells, red where one of the spots (x, y, radius) of an `of` x `of` map is near."""
    side, parts = size / cells, []
    for row in range(cells):
        for column in range(cells):
            at_x, at_y = (first[0] + column + 0.5) / of, (first[1] + row + 0.5) / of
            score = min(1, sum(exp(-((at_x - u) ** 2 + (at_y - v) ** 2) / r**2) for u, v, r in spots))
            colour = f'rgb({round(60 + 190 * score)},{round(90 + 60 * score)},{round(190 - 140 * score)})'
            where = f'x="{x + column * side:.2f}" y="{y + row * side:.2f}"'
            parts.append(f'<rect {where} width="{side + 0.3:.2f}" height="{side + 0.3:.2f}" fill="{colour}"/>')
    return ''.join(parts)


HEAD_ONLY = ((0.79, 0.41, 0.16),)
WHOLE = ((0.79, 0.41, 0.17), (0.55, 0.54, 0.2), (0.3, 0.56, 0.2))


def draw_method():
    """Return the diagram of stage 1: both passes, the merged maps, the three losses."""
    parts = [text(90, 34, 'image', 15, weight='600'), scene(30, 46, 120, 'whole')]
    parts += [text(90, 262, '2 x 2 tiles', 15, weight='600')]
    for i in range(4):
        x, y, name = 26 + 66 * (i % 2), 276 + 66 * (i // 2), f'tile{i}'
        move = f'translate({x - 60 * (i % 2)} {y - 60 * (i // 2)})'
        cut = f'<clipPath id="{name}"><rect x="{60 * (i % 2)}" y="{60 * (i // 2)}" width="60" height="60"/></clipPath>'
        parts.append(f'{cut}<g transform="{move}"><g clip-path="url(#{name})">{scene(0, 0, 120, name + "s")}</g></g>')
    parts += [arrow([(90, 172), (90, 244)]), text(100, 212, 'cut', 13, 'soft', 'start')]

    # One network, run twice.
    parts += [rectangle(222, 50, 150, 346, 'train'), text(297, 205, 'classifier', 16, weight='600')]
    parts += [text(297, 228, 'one network,', 13, 'soft'), text(297, 246, 'shared weights', 13, 'soft')]
    parts += [text(297, 92, 'pass 1', 13, 'soft'), text(297, 362, 'pass 2', 13, 'soft')]
    parts += [arrow([(158, 106), (216, 106)]), arrow([(158, 340), (216, 340)])]

    # Class maps.
    parts += [arrow([(372, 106), (428, 106)]), text(495, 34, 'class maps A', 15, weight='600')]
    parts += [heat(436, 46, 120, HEAD_ONLY)]
    parts += [arrow([(372, 340), (428, 340)]), text(495, 262, 'maps of the tiles', 15, weight='600')]
    for i in range(4):
        x, y = 432 + 66 * (i % 2), 276 + 66 * (i // 2)
        parts.append(heat(x, y, 60, WHOLE, 4, (4 * (i % 2), 4 * (i // 2))))
    parts += [arrow([(564, 340), (622, 340)]), text(593, 330, 'merge', 13, 'soft')]
    merged = 'merged maps A<tspan dy="-5" font-size="75%">re</tspan>'
    parts += [text(690, 262, merged, 15, weight='600'), heat(630, 280, 120, WHOLE)]

    # Losses.
    for y, name, note in (
        (76, lower('L', 'cls'), 'tags against the mean of A'),
        (310, lower('L', 'p-cls'), 'tags against the mean of A<tspan dy="-4" font-size="75%">re</tspan>'),
    ):
        parts += [rectangle(820, y, 74, 60, 'loss'), text(857, y + 36, name, 20, weight='600')]
        parts += [text(857, y + 80, note, 13, 'soft')]
    parts += [arrow([(564, 106), (814, 106)]), text(690, 98, 'spatial mean', 13, 'soft')]
    parts += [
        arrow([(756, 340), (814, 340)]),
        text(785, 318, 'spatial', 13, 'soft'),
        text(785, 333, 'mean', 13, 'soft'),
    ]
    parts += [rectangle(653, 156, 74, 52, 'loss'), text(690, 188, lower('L', 're'), 20, weight='600')]
    parts += [arrow([(564, 148), (646, 180)]), arrow([(690, 244), (690, 214)])]
    parts += [text(740, 180, 'distance between A and A<tspan dy="-4" font-size="75%">re</tspan>', 13, 'soft', 'start')]
    parts += [text(740, 198, 'of the present classes, weight alpha', 13, 'soft', 'start')]
    total = f'L = {lower("L", "cls")}<tspan dy="-5"> + L</tspan><tspan dy="5" font-size="75%">p-cls</tspan>'
    total += '<tspan dy="-5"> + alpha L</tspan><tspan dy="5" font-size="75%">re</tspan>'
    parts += [text(500, 446, total, 18, weight='600')]
    parts += [text(500, 472, 'Tags are the only labels. Gradients flow through both passes.', 13, 'soft')]
    title = 'Stage 1: one classifier sees an image and its 2 x 2 tiles; three losses compare the results'
    return svg(1000, 490, title, *parts)


def draw_stages():
    """Return the nine stages in three rows: train a network, run it, process its outputs on the CPU."""
    parts, kinds = [], ('train', 'run', 'cpu')
    heads = ('trains a network (GPU or CPU)', 'runs it on images (GPU or CPU)', 'no network (CPU cores)')
    width, height, left, top = 306, 118, 26, 56
    for i, head in enumerate(heads):
        parts.append(text(left + i * 340 + width / 2, 34, head, 15, 'soft', weight='600'))
    for i, (script, what, folder) in enumerate(STAGES):
        x, y = left + i % 3 * 340, top + i // 3 * 166
        parts.append(rectangle(x, y, width, height, kinds[i % 3]))
        parts.append(text(x + 14, y + 30, f'{i + 1}', 20, anchor='start', weight='700'))
        parts.append(text(x + 38, y + 29, script, 12, 'ink code', 'start'))
        parts.append(text(x + 38, y + 56, what, 15, anchor='start'))
        parts.append(text(x + 38, y + 80, 'writes experiments/', 12, 'soft', 'start'))
        parts.append(text(x + 38, y + 100, folder, 12, 'ink code', 'start'))
        if i % 3 < 2:
            parts.append(arrow([(x + width + 3, y + 59), (x + 337, y + 59)]))
    for row in range(2):  # to the beginning of the next row
        y = top + row * 166 + height
        parts.append(arrow([(left + 680 + 250, y + 3), (left + 930, y + 18), (left + 60, y + 18), (left + 60, y + 45)]))
    # CAMs also go to the random walk.
    parts.append(arrow([(left + 340 + 200, top + height + 3), (left + 540, top + 163)]))
    parts.append(text(left + 550, top + height + 38, 'CAMs', 13, 'soft', 'start'))
    parts.append(text(left + 70, top + height + 38, 'affinity labels', 13, 'soft', 'start'))
    parts.append(text(left + 70, top + 166 + height + 38, 'pseudo-labels', 13, 'soft', 'start'))
    return svg(1038, 524, 'The nine stages and what each one writes', *parts)


def draw_gain():
    """Return the dot plot of GAINS."""
    low, high, left, right, top, step = -6, 6, 330, 830, 100, 50

    def at(gain):
        return left + (gain - low) / (high - low) * (right - left)

    bottom = top + step * len(GAINS) - 14
    rest = '<tspan dy="-5"> alone, points of mIoU of the CAMs</tspan>'
    title = f'Gain of all three losses over {lower("L", "cls")}{rest}'
    parts = [text(20, 32, title, 17, anchor='start', weight='600')]
    for gain in range(low, high + 1, 2):
        width = 2 if gain == 0 else 1
        parts.append(f'<path class="grid" d="M{at(gain)} {top - 22}V{bottom}" stroke-width="{width}"/>')
        parts.append(text(at(gain), bottom + 20, f'{gain:+d}' if gain else '0', 13, 'soft'))
    parts.append(
        text(at(-0.15), top - 30, 'worse', 13, 'soft', 'end') + text(at(0.15), top - 30, 'better', 13, 'soft', 'start')
    )
    for i, (label, setting, seeds, mean, interval) in enumerate(GAINS):
        y = top + i * step
        parts += [
            text(20, y - 3, label, 15, anchor='start', weight='600'),
            text(20, y + 15, setting, 13, 'soft', 'start'),
        ]
        style = 'good' if (mean if mean is not None else seeds[0]) > 0 else 'bad'
        shown = f'{seeds[0]:+.2f}' if mean is None else f'{mean:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})'
        parts.append(text(right + 18, y + 5, shown, 14, anchor='start'))
        if interval:
            start, end = map(at, interval)
            ends = ''.join(f'M{x:.1f} {y - 7}V{y + 7}' for x in (start, end))
            parts.append(f'<path class="{style}" fill="none" stroke-width="2.5" d="M{start:.1f} {y}H{end:.1f}{ends}"/>')
            x = at(mean)
            parts.append(f'<path class="{style}" d="M{x:.1f} {y - 7}l7 7-7 7-7-7z"/>')
        for gain in seeds:
            parts.append(
                f'<circle class="{style}" fill-opacity="0.35" stroke-width="1.5" cx="{at(gain):.1f}" cy="{y}" r="4.5"/>'
            )
    note = 'Diamond: mean. Bar: 95 % interval (t, paired seeds). Circles: single seeds, where recorded.'
    note += ' Paper (VOC, ResNet-50): +3.7.'
    parts.append(text(20, bottom + 50, note, 13, 'soft', 'start'))
    return svg(1010, bottom + 68, 'Gain in mIoU of all three losses over L_cls alone, with 95 % intervals', *parts)


# Pictures -----------------------------------------------------------------------------------------------------------


def tile(picture, title, note, side, height=None):
    """Return a picture in a square of a side (or of a height), enlarged, with a title above and a note below."""
    above, below, height = 34, 28, height or side
    canvas = Image.new('RGB', (side, above + height + below), 'white')
    draw = ImageDraw.Draw(canvas)
    draw.text((side / 2, above / 2), title, (31, 35, 40), ImageFont.load_default(21), anchor='mm')
    draw.text((side / 2, above + height + below / 2), note, (89, 99, 110), ImageFont.load_default(17), anchor='mm')
    shown = Image.fromarray(picture)
    scale = side / max(shown.size)
    shown = shown.resize([round(scale * x) for x in shown.size], Image.Resampling.BICUBIC)
    canvas.paste(shown, ((side - shown.width) // 2, above + (height - shown.height) // 2))
    return np.array(canvas)


def tags_picture(names, palette, shape):
    """Return the tags of an image as names in their colours, on a grey picture of a shape."""
    canvas = Image.new('RGB', (2 * shape[1], 2 * shape[0]), (240, 242, 245))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(40)
    for i, (index, name) in enumerate(names):
        colour, y = tuple(palette[index].tolist()), shape[0] + 66 * (i - len(names) / 2) + 33
        draw.rounded_rectangle((28, y - 27, canvas.width - 28, y + 27), 8, colour)
        draw.text((canvas.width / 2, y), name, ink(colour), font, anchor='mm')
    return np.array(canvas)


class Outputs:
    """The outputs of the quickstart for a scene."""

    def __init__(self, experiments, image_id):
        self.dataset = open_dataset(experiments / 'demo/dataset.json', experiments / 'demo')
        self.predictions, self.image_id = experiments / 'predictions', image_id
        self.image = np.array(self.dataset.read_image(image_id))
        self.mask = self.dataset.read_mask(image_id)
        self.tags = [(i + 1, self.dataset.class_names[i]) for i in np.flatnonzero(self.dataset.read_labels(image_id))]

    def maps(self, folder, name):
        """Return the keys and the maps of a folder, as float32."""
        keys, maps = read_arrays(self.predictions / folder / f'{self.image_id}.npz', 'keys', name)
        return keys, maps.astype('float32')

    def walk(self):
        keys, maps = self.maps('demo@affinity@train@beta=10@exp_times=8@rw', 'rw')
        return keys, upsample_rw(maps, self.image.shape[:2])

    def heat(self, maps):
        return overlay_heatmap(self.image, maps.max(0))

    def overlay(self, label):
        return overlay_mask(self.image, label, self.dataset.palette)

    def miou(self, label):
        """Return the mean IoU of a label map of this one image, in percent."""
        matrix = ConfusionMatrix(self.dataset.num_classes + 1)
        matrix.update(label, self.mask)
        return 100 * matrix.miou()


def draw_strip(outputs):
    """Return the strip of the first screen: from an image and its tags to a pseudo-label."""
    scales = 'train@scale=0.5,1.0,1.5,2.0'
    _, walk = outputs.walk()
    label = outputs.dataset.read_label_map(
        outputs.predictions / f'demo@affinity@train@beta=10@exp_times=8@rw@crf=1/{outputs.image_id}.png'
    )
    tiles = (
        (outputs.image, 'image', 'input'),
        (tags_picture(outputs.tags, outputs.dataset.palette, outputs.image.shape[:2]), 'tags', 'the only labels'),
        (outputs.heat(outputs.maps(f'demo@cl@{scales}', 'hr_cam')[1]), 'plain CAM', 'stage 2, L_cls alone'),
        (outputs.heat(outputs.maps(f'demo@puzzle@{scales}', 'hr_cam')[1]), 'Puzzle-CAM', 'stage 2, all three losses'),
        (outputs.heat(walk), 'random walk', 'stages 3 to 5'),
        (outputs.overlay(label), 'pseudo-label', 'stage 6'),
        (outputs.overlay(outputs.mask), 'ground truth', 'for scoring only'),
    )
    return stack([tile(*cells, side=232) for cells in tiles], len(tiles))


def draw_thresholds(outputs, thresholds=(0.1, 0.35, 0.7)):
    """Return pseudo-labels at a threshold that is too low, right and too high, with what to change."""
    keys, walk = outputs.walk()
    advice = ('too much: raise --threshold', 'about right', 'too little: lower --threshold')
    tiles = [tile(outputs.image, 'image', '', 300)]
    for threshold, words in zip(thresholds, advice, strict=True):
        label = pseudo_label(outputs.image, keys, walk, threshold)
        title = f'--threshold {threshold:g}: IoU {outputs.miou(label):.0f} %'
        tiles.append(tile(outputs.overlay(label), title, words, 300))
    tiles.append(tile(outputs.overlay(outputs.mask), 'ground truth', '', 300))
    return stack(tiles, len(tiles))


def draw_photograph(path, folder):
    """Return the chain of tools.predict on a photograph: its CAM, the random walk and the mask."""
    image = np.array(read_image(path))
    cam, walk = read_arrays(folder / f'{path.stem}.npz', 'hr_cam', 'rw')
    walk = upsample_rw(walk, image.shape[:2])
    with Image.open(folder / f'{path.stem}.png') as mask:
        label, palette = np.array(mask), np.array(mask.getpalette(), np.uint8).reshape(-1, 3)
    tiles = (
        (image, 'photograph', ''),
        (overlay_heatmap(image, cam.astype('float32').max(0)), 'CAM', 'stage 2'),
        (overlay_heatmap(image, walk.max(0)), 'random walk', 'stages 3 to 5'),
        (overlay_mask(image, label, palette), 'mask', 'stage 6'),
    )
    height = round(300 * image.shape[0] / max(image.shape[:2]))
    return stack([tile(*cells, side=300, height=height) for cells in tiles], len(tiles))


def write_picture(path, picture):
    """Write a PNG with a white margin."""
    buffer = io.BytesIO()
    Image.fromarray(np.pad(picture, ((0, 8), (0, 8), (0, 0)), constant_values=255)).save(buffer, 'PNG', optimize=True)
    path.write_bytes(buffer.getvalue())
    print(f'{path}: {len(buffer.getvalue()) / 1000:.0f} kB')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = 'also draw the pictures, from this experiments folder of the quickstart'
    parser.add_argument('--pictures', type=Path, metavar='EXPERIMENTS', help=folder)
    parser.add_argument('--strip', default=STRIP, metavar='ID', help='scene of strip.png (default: %(default)s)')
    scene = 'scene of thresholds.png (default: %(default)s)'
    parser.add_argument('--thresholds', default=THRESHOLDS, metavar='ID', help=scene)
    names = ('IMAGE', 'FOLDER')
    predicted = 'also draw photograph.png, from an image and the folder that tools.predict --affinity wrote of it'
    parser.add_argument('--photograph', type=Path, nargs=2, metavar=names, help=predicted)
    return parser.parse_args(argv)


def main(args):
    for name, draw in (('method', draw_method), ('stages', draw_stages), ('gain', draw_gain)):
        (DOCS / f'{name}.svg').write_text(draw())
        print(f'{DOCS / name}.svg')
    if args.pictures:
        write_picture(DOCS / 'strip.png', draw_strip(Outputs(args.pictures, args.strip)))
        write_picture(DOCS / 'thresholds.png', draw_thresholds(Outputs(args.pictures, args.thresholds)))
    if args.photograph:
        write_picture(DOCS / 'photograph.png', draw_photograph(*args.photograph))


if __name__ == '__main__':
    main(parse_args())
