"""Cut a picture of the documentation from a page of tools.report, in a headless Chromium.

Reads   a page of tools.report
Writes  the file of --out, .png or .jpg: cards of the gallery, or a section of the page

    python3 -m recipes.cut_pictures experiments/report.html --ids train_00003 --hide demo@cl --out docs/chain.jpg
    python3 -m recipes.cut_pictures experiments/report.html --section chain --out docs/report.png

Needs playwright (requirements-dev.txt) and a Chromium of the system (apt-get install chromium).
"""

import shutil
from pathlib import Path

from core import UserError
from util import flags, script
from util.store.files import check_output, write_bytes

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

# Leave the chosen cards, in the order of their ids; return the ids that the page lacks.
KEEP_CARDS = """(ids) => {
  const more = document.getElementById('more');
  while (!more.hidden) more.click();
  const cards = Object.fromEntries([...document.querySelectorAll('.card')].map((card) =>
    [card.querySelector('h3 span').textContent.trim(), card]));
  document.getElementById('cards').replaceChildren(...ids.filter((id) => cards[id]).map((id) => cards[id]));
  return ids.filter((id) => !cards[id]);
}"""


def parse_args(argv=None):
    parser = flags.Parser(__doc__)
    parser.add_argument('page', metavar='PAGE', type=Path, help='page of tools.report')
    run = parser.groups['run and output']
    run.add_argument('--ids', type=flags.names, default=[], help='ids whose cards are cut out, comma-separated')
    run.add_argument(
        '--hide', nargs='*', default=[], metavar='TEXT', help='leave out folders whose title contains this'
    )
    run.add_argument('--section', help='id of the section to cut out instead, such as chain, classes or thresholds')
    run.add_argument('--width', type=flags.integer(200, 4000), default=1280, help='width of the window in pixels')
    run.add_argument('--scheme', choices=('light', 'dark'), default='light', help='colours of the page')
    run.add_argument('--out', type=Path, required=True, help='file to write, .png or .jpg')
    run.add_argument('--overwrite', action='store_true', help='replace the file if it exists')
    args = parser.parse_args(argv)
    if bool(args.ids) == bool(args.section):
        parser.error('pass either --ids or --section')
    if args.out.suffix not in ('.png', '.jpg'):
        parser.error(f'--out {args.out}: must end with .png or .jpg')
    return args


def start_browser(playwright):
    """Return the Chromium of the system, started."""
    found = filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')))
    path = next(found, None)
    if path is None:
        raise UserError('no Chromium found: install it (apt-get install chromium)')
    return playwright.chromium.launch(executable_path=path, args=['--no-sandbox'])


def prepare(page, args):
    """Return the selector of the element to cut out, after hiding the other elements."""
    if args.section:
        if not page.locator('section').evaluate_all('(nodes, id) => nodes.some((n) => n.id === id)', args.section):
            raise UserError(f'--section {args.section}: {args.page} has no such section')
        return f'#{args.section}'
    for box in page.locator('[name=source]').all():
        title = box.locator('..').text_content()
        if any(text in title for text in args.hide):
            box.uncheck()
    missing = page.evaluate(KEEP_CARDS, args.ids)
    if missing:
        raise UserError(f'--ids {missing[0]}: is not in the gallery of {args.page}: pass it to tools.report --ids too')
    return '#cards'


def main(args):
    if not args.page.is_file():
        raise UserError(f'{args.page}: no such file; run python3 -m tools.report first')
    if not (args.overwrite and args.out.is_file()):
        check_output(args.out, '--out')
    if sync_playwright is None:
        raise UserError('playwright is not installed: pip install playwright')
    with sync_playwright() as playwright:
        browser = start_browser(playwright)
        page = browser.new_page(viewport={'width': args.width, 'height': 1000}, color_scheme=args.scheme)
        page.goto(args.page.resolve().as_uri())
        selector = prepare(page, args)
        page.locator(selector).scroll_into_view_if_needed()
        page.wait_for_function('[...document.images].every((image) => image.complete)')
        page.wait_for_timeout(500)  # charts are drawn when they come near the screen
        options = {'type': 'png'} if args.out.suffix == '.png' else {'type': 'jpeg', 'quality': 88}
        write_bytes(args.out, page.locator(selector).screenshot(**options))
        browser.close()
    print(f'written to {args.out}')


if __name__ == '__main__':
    script.run(main, parse_args)
