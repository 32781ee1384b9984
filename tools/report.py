"""Make one HTML page of one or more experiments: tables, charts, every stage's maps over the images, and their origin.

Reads   experiments/results/, predictions/ and data/ of the named outputs; the data set that they record
Writes  experiments/report.html, which needs neither a network nor other files

    python3 -m tools.report
    python3 -m tools.report my@puzzle my@affinity my@deeplab
    python3 -m tools.report 'plain | my@cl@train@scale=0.5,1.0,1.5,2.0@train' 'Puzzle-CAM | my@puzzle@train@*'
    python3 -m tools.report my --images 0 --out experiments/my.html

Each argument is NAME or TITLE | NAME. NAME is a tag, the name of a result or of an output folder, the path of a result
or a part that no other name contains; * matches several. Without arguments the page has everything under experiments/.
Outputs that evaluate.py has not scored are in the gallery only; so are masks of tools.predict (experiments/predict/).
Of a pattern that matches several seeds, the page also has the means.
"""

import json
import time
from functools import partial
from pathlib import Path

import jinja2
import numpy as np
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from core import UserError
from core.data import drawing
from core.image_scores import SIZES
from core.metrics import ERROR_SHARES
from tools.reporting import charts, find, gallery, panels, provenance, tables
from tools.reporting.entries import (
    add_recorded_data,
    check_classes,
    find_entries,
    name_entries,
    open_photographs,
    open_recorded,
    stage_number,
)
from util import flags, script
from util.parallel.workers import parallel_map
from util.store import formats
from util.store.files import check_output, write_bytes
from util.store.fingerprints import read_args, versions

TEMPLATES = Path(__file__).parent / 'reporting' / 'templates'


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='NAME or TITLE | NAME (default: everything)')
    add_recorded_data(parser)
    parser.add_table(flags.WORKERS)
    run = parser.groups['run and output']
    how_many = 'images in the gallery: the worst, the middle and the best ones (0: all)'
    run.add_argument('--images', type=flags.integer(0), default=200, help=how_many)
    run.add_argument(
        '--ids', type=flags.names, default=[], help='ids that the gallery always contains, comma-separated'
    )
    run.add_argument('--out', type=Path, default=formats.EXPERIMENTS / 'report.html', help='file to write')
    return parser.parse_args(argv)


def make_charts(entries, steps, names):
    """Return the charts of the page by name; the name of a chart of one entry ends with its number."""
    labels = [entry.label for entry in entries]
    scored = {i: entry.result for i, entry in enumerate(entries) if entry.result}
    swept = {i: result for i, result in scored.items() if len(result['sweep']) > 1}
    figures = {}
    columns = {i: result['iou'] for i, result in scored.items() if 'iou' in result}
    if columns:
        figures['classes'] = charts.chart_classes(columns, labels)
    if swept:
        figures['thresholds'] = charts.chart_thresholds(swept, labels)
    for i, result in scored.items():
        if 'confusion' in result:
            confusion = np.array(result['confusion'])
            figures[f'errors-{i}'] = charts.chart_errors(confusion, names)
            figures[f'confusion-{i}'] = charts.chart_confusion(confusion, names)
    for kind in provenance.KINDS:
        runs = [step for step in steps if step.kind == kind]
        tags, curves = [run.name for run in runs], [run.curves for run in runs]
        for name in charts.list_curves(curves):
            figures[f'{kind}: {name}'] = charts.chart_curve(name, tags, curves)
    return {name: figure.to_plotly_json() for name, figure in figures.items()}


def make_gallery(args, dataset, entries, steps, counts):
    """Return the data of the gallery: sources, cards of the chosen images, and how many there are in all."""
    sources = gallery.find_sources(entries, steps)
    scores = [gallery.score_images(*count) if count else {} for count in counts]
    domains = sorted({entry.domain for entry in entries})
    chosen, total = [], 0
    for i, domain in enumerate(domains):
        # Choose by the scores of the last stage that was scored on this list.
        last = next((s for e, s in zip(entries[::-1], scores[::-1], strict=True) if s and e.domain == domain), {})
        ids = [image_id for image_id in list(last) or dataset.ids(domain) if dataset.image_path(image_id).is_file()]
        means = {image_id: score['all'] for image_id, score in last.items()}
        share = args.images and max(1, args.images // len(domains) + (i < args.images % len(domains)))
        chosen += [(image_id, domain) for image_id in gallery.choose_ids(ids, means, share, args.ids)]
        total += len(ids)
    missing = set(args.ids) - {image_id for image_id, _ in chosen}
    if missing:
        raise UserError(f'--ids {min(missing)}: is not in the lists {", ".join(domains)}')
    make = partial(gallery.make_card, dataset=dataset, sources=sources)
    cards = list(parallel_map(make, chosen, args.num_workers, 'images'))
    for card in cards:
        card['scores'] = {
            i: score[card['id']]
            for i, (entry, score) in enumerate(zip(entries, scores, strict=True))
            if entry.domain == card['domain'] and card['id'] in score
        }
    return {'sources': [source.title for source in sources], 'cards': cards, 'total': total}


def render(dataset, entries, steps, counts, two_fold, shown):
    """Return the page."""
    names = dataset.label_names
    backbone, published = tables.find_published(steps, dataset.class_names)
    classes = [make_label(name, colour) for name, colour in zip(names, dataset.palette.tolist(), strict=False)]
    errors = [make_label(name, colour) for name, colour in panels.ERRORS.items()]
    figures = make_charts(entries, steps, names)
    failures = {
        i: tables.describe_failures(entry.result, names)
        for i, entry in enumerate(entries)
        if entry.result and 'confusion' in entry.result
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters['seconds'] = tables.format_seconds
    environment.globals['enumerate'] = enumerate
    return environment.get_template('report.html').render(
        dataset=dataset,
        entries=entries,
        chain=tables.tabulate_chain(entries, counts, two_fold, published),
        backbone=backbone,
        published=published,
        stale=[entry.label for entry in entries if entry.is_stale],
        means=tables.tabulate_means(entries),
        differences=tables.tabulate_differences(entries, two_fold),
        objects=tables.tabulate_objects(entries),
        sizes=SIZES,
        classes=classes,
        errors=errors,
        by_class=tables.tabulate_classes(entries),
        failures=failures,
        figures=list(figures),
        groups=tables.tabulate_steps(steps),
        steps=sorted(steps, key=lambda step: stage_number(step.kind)),
        environments=tables.list_environments(steps),
        training={kind: [step.name for step in steps if step.kind == kind] for kind in provenance.KINDS},
        colour_of=charts.colour_of,
        share_colours=charts.SHARE_COLOURS,
        gallery=shown,
        shares=ERROR_SHARES,
        scored={i: entry.label for i, entry in enumerate(entries) if entry.result},
        swept={i: entry.label for i, entry in enumerate(entries) if len(entry.scores.get('sweep', ())) > 1},
        domains=sorted({entry.domain for entry in entries}),
        versions=versions(),
        now=time.strftime('%Y-%m-%d %H:%M'),
        data=as_json({'classes': classes, 'errors': errors, 'gallery': shown}),
        charts=as_json(figures),
        plotly=get_plotlyjs(),
    )


def make_label(name, colour):
    """Return a name with its colour (RGB) and its text colour, for the template and the page's script."""
    return {'name': name, 'colour': f'rgb{tuple(colour)}', 'ink': f'rgb{drawing.ink(colour)}'}


def as_json(content) -> str:
    """Return JSON that can stand inside a <script>."""
    return json.dumps(content, cls=PlotlyJSONEncoder, separators=(',', ':')).replace('<', '\\u003c')


def main(args):
    begins, _, _ = (TEMPLATES / 'report.html').read_bytes().partition(b'{{')
    check_output(args.out, '--out', begins)
    entries = find_entries(args.names)
    records = [read_args(entry.path) for entry in entries]
    records += [entry.scores.get('made_with') or {} for entry in entries]  # folders that no longer exist
    if entries[0].is_photographs:
        dataset = open_photographs(entries)
    else:
        dataset = open_recorded(args, entries[0].folder, *records)
        for entry in entries:
            check_classes(dataset, entry.path, read_args(entry.path) or entry.scores.get('made_with') or {})
    entries = name_entries([entry.on_list_of(dataset) for entry in entries])
    counts, two_fold = (
        [find.read_counts(entry.result, of_folds) if entry.result else None for entry in entries]
        for of_folds in (False, True)
    )
    steps = provenance.trace({entry.folder: entry.kind for entry in entries})
    folders = [step.path for step in steps if not step.is_run]
    provenance.warn_if_outdated(folders, dataset=dataset)  # the page marks entries that were scored before the change
    with provenance.unchanged(folders):
        shown = make_gallery(args, dataset, entries, steps, counts)
        page = render(dataset, entries, steps, counts, two_fold, shown).encode()
    write_bytes(args.out, page)
    print(f'{args.out}: {len(shown["cards"])} of {shown["total"]} images, {len(page) / 1e6:.1f} MB')


if __name__ == '__main__':
    script.run(main, parse_args)
