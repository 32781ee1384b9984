"""The pages of README and docs/: their commands, messages and sizes match the code."""

import re

import pytest

from support import REPOSITORY
from support.documents import commands_of, module_of

PAGES = [REPOSITORY / 'README.md', *sorted((REPOSITORY / 'docs').rglob('*.md'))]
CODE = [path for folder in ('core', 'util', 'tools') for path in (REPOSITORY / folder).rglob('*.py')]
CODE += REPOSITORY.glob('*.py')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_documented_commands_are_parsed(page):
    text = page.read_text()
    assert not re.findall(r'python3 \w+/\w+\.py', text), 'programs run as python3 -m'
    for module, words in commands_of(text):
        module_of(module).parse_args(words)


def test_headings_that_pages_and_scripts_cite_exist():
    """A citation is: docs/voc.md, "Heading"; or README, "Heading". Citations in modules: test_house.py."""
    scripts = [path for suffix in ('*.sh', '*.sbatch', '*.txt') for path in REPOSITORY.glob(f'[!.e]*/**/{suffix}')]
    for path in [*PAGES, *scripts, *REPOSITORY.glob('*.txt')]:
        text = re.sub(r'\s+(# )?', ' ', path.read_text())
        for page, heading in re.findall(r'(docs/[\w/]+\.md|README(?:\.md)?), "([^"]+)"', text):
            headings = re.findall(r'^#+ (.+)$', (REPOSITORY / page).with_suffix('.md').read_text(), re.M)
            assert heading in headings, f'{path.relative_to(REPOSITORY)}: {page} has no heading "{heading}"'


def test_readme_is_short():
    assert len((REPOSITORY / 'README.md').read_text().splitlines()) <= 250


def rows_of(page: str) -> list[str]:
    """Return the first cells of the rows of a page's tables, without the headers."""
    text = (REPOSITORY / 'docs' / page).read_text()
    return [row.split(' | ')[0].removeprefix('| ') for row in re.findall(r'^\|(?!--).+', text, re.M)][1:]


def test_messages_are_those_of_the_code():
    """Three words in a row of each message, or both if it has two, stand in a message of the code; rows are sorted."""
    code = re.sub(r"'\s*\n\s*f?'", '', '\n'.join(path.read_text() for path in CODE))
    rows = rows_of('troubleshooting.md')
    assert len(rows) > 40
    for row in rows:
        parts = [part.split() for part in re.split(r'\.\.\.|[()`:;]|\S*\d\S*|"[^"]*"|\[.*?\]|experiments/', row)]
        runs = [' '.join(part[i : i + 3]) for part in parts for i in range(max(1, len(part) - 2))]
        assert any(run.count(' ') and run in code for run in runs), f'{row}: {runs}'
    letters = [re.sub(r'[^a-z ]', '', row.lower().removeprefix('`a ')).strip() for row in rows]
    assert letters == sorted(letters)


def test_glossary_is_sorted():
    words = [row.strip('*').lower() for row in rows_of('glossary.md')]
    assert 20 <= len(words) <= 25
    assert words == sorted(words)
