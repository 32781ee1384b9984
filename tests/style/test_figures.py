"""The SVGs of the documents: as docs/make_figures.py draws them, from figures that docs/results/ has."""

from docs import make_figures
from support import REPOSITORY


def test_the_svgs_are_what_the_script_draws():
    for name in ('method', 'stages', 'gain'):
        drawn = getattr(make_figures, f'draw_{name}')()
        written = (REPOSITORY / f'docs/{name}.svg').read_text()
        assert drawn == written, f'docs/{name}.svg: run python3 -m docs.make_figures'


def test_the_intervals_of_the_figure_are_in_the_results():
    texts = ' '.join(path.read_text() for path in (REPOSITORY / 'docs/results').glob('*.md'))
    for label, setting, seeds, mean, interval in make_figures.GAINS:
        if '4 seeds' in setting:  # the page has the scores themselves, and the interval rounded to 0.1
            continue
        numbers = [*([mean] if mean is not None else seeds), *(interval or ())]
        assert [number for number in numbers if f'{number:+.2f}' not in texts] == [], (label, setting)
