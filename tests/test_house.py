"""The rules of the house: layout, dependencies, documentation, language."""

import ast
import re
import subprocess

import pytest
from conftest import REPOSITORY, STAGES

CORE = sorted((REPOSITORY / 'core').rglob('*.py'))
UTIL = sorted((REPOSITORY / 'util').rglob('*.py'))
TOOLS = sorted((REPOSITORY / 'tools').rglob('*.py'))
SCRIPTS = [REPOSITORY / f'{stage}.py' for stage in STAGES]
OTHERS = [
    path for folder in ('demo_data', 'benchmarks', 'recipes') for path in sorted((REPOSITORY / folder).glob('*.py'))
]
OURS = [*SCRIPTS, *CORE, *UTIL, *TOOLS, *OTHERS]
NAMES = {path: str(path.relative_to(REPOSITORY)) for path in OURS}
DOCUMENTS = [REPOSITORY / 'README.md', REPOSITORY / 'NOTES.md', *sorted((REPOSITORY / 'docs').glob('*.md'))]
FORKING = ('make_affinity_labels', 'make_pseudo_labels', 'evaluate')


def parse(path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            found |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return found


def packages(path) -> set[str]:
    return {name.split('.')[0] for name in imported(path)}


def functions(path):
    return [node for node in ast.walk(parse(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


# Layout -------------------------------------------------------------------------------------------------------------


def test_every_script_at_the_root_is_a_stage():
    assert {path.stem for path in REPOSITORY.glob('*.py')} == set(STAGES)


@pytest.mark.parametrize('path', SCRIPTS, ids=NAMES.get)
def test_scripts_are_short(path):
    assert len(path.read_text().splitlines()) < 200


@pytest.mark.parametrize('path', OURS, ids=NAMES.get)
def test_functions_are_short(path):
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path)}
    assert {name: lines for name, lines in long.items() if lines > 80} == {}


@pytest.mark.parametrize('path', SCRIPTS, ids=NAMES.get)
def test_a_script_needs_few_names_of_its_own(path):
    """At most 15 names from core and util in a stage that writes files, 25 in a trainer."""
    names = {
        alias.name
        for node in parse(path).body
        if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] in ('core', 'util')
        for alias in node.names
    }
    assert len(names) <= (25 if path.name.startswith('train_') else 15), sorted(names)


@pytest.mark.parametrize('path', SCRIPTS, ids=NAMES.get)
def test_scripts_share_few_lines(path):
    """Under 35 % of a script's lines stand in its nearest sibling."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    shared = {}
    for other in SCRIPTS:
        if other != path:
            theirs = {line.strip() for line in other.read_text().splitlines()}
            shared[other.name] = 100 * sum(line in theirs for line in lines) / len(lines)
    assert max(shared.values()) < 35, shared


@pytest.mark.parametrize('path', SCRIPTS, ids=NAMES.get)
def test_scripts_read_from_top_to_bottom(path):
    """Docstring, imports once, constants, functions with parse_args first and main last, guard. No side effects."""
    body = parse(path).body
    kinds = [type(node) for node in body]
    assert isinstance(body[0], ast.Expr) and ast.get_docstring(parse(path))
    order = {ast.Expr: 0, ast.Import: 1, ast.ImportFrom: 1, ast.Assign: 2, ast.FunctionDef: 3, ast.If: 4}
    assert [order[kind] for kind in kinds] == sorted(order[kind] for kind in kinds)
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert (defined[0], defined[-1]) == ('parse_args', 'main')
    assert ast.unparse(body[-1]) == "if __name__ == '__main__':\n    stage.run(main, parse_args)"


@pytest.mark.parametrize('path', OURS, ids=NAMES.get)
def test_imports_are_at_the_top(path):
    for function in functions(path):
        inside = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert inside == [], f'{path}: {function.name} imports'
    assert 'sys.path' not in path.read_text()


def test_every_file_is_in_the_file_tree_of_the_readme():
    tree = (REPOSITORY / 'README.md').read_text().split('## Files', 1)[1]
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('not a git clone')
    for name in filter(None, listed.stdout.split('\0')):
        folder, _, file = name.rpartition('/')
        if file.endswith(('.py', '.sh')) and folder not in ('tests', '.ci', 'benchmarks') and file != '__init__.py':
            assert re.search(rf'\b{re.escape(file)}\b', tree), f'{name} is not in the file tree'


# Dependencies -------------------------------------------------------------------------------------------------------


def test_imports_go_one_way():
    """Scripts and tools import util and core; util core's errors and reader of weight files; core only core."""
    ours = {'core', 'util', 'tools', 'demo_data', 'benchmarks', 'recipes', 'tests', *STAGES}
    for path in CORE:
        assert packages(path) & ours <= {'core'}, path
    allowed = {'core', 'core.UserError', 'core.IGNORE', 'core.STRIDE', 'core.models.weights'}
    for path in UTIL:
        assert packages(path) & ours <= {'core', 'util'}, path
        names = {name for name in imported(path) if name.split('.')[0] == 'core'}
        assert {name for name in names if not name.startswith('core.models.weights')} <= allowed, path
    for path in [*SCRIPTS, *CORE, *UTIL, *TOOLS]:
        assert not packages(path) & {'tests', *STAGES}, path


def test_only_one_module_imports_pydensecrf():
    assert [
        NAMES[path] for path in OURS if 'pydensecrf' in packages(path) and path in CORE + UTIL + TOOLS + SCRIPTS
    ] == ['core/crf.py']


@pytest.mark.parametrize('name', FORKING)
def test_stages_that_fork_do_not_import_torch(name):
    program = f'import sys, {name}; sys.exit("torch" in sys.modules)'
    assert subprocess.run(['python', '-c', program], cwd=REPOSITORY).returncode == 0


def keywords(path) -> set[tuple[str, object]]:
    return {
        (keyword.arg, keyword.value.value)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if isinstance(keyword.value, ast.Constant)
    }


@pytest.mark.parametrize('path', OURS, ids=NAMES.get)
def test_no_pickle_is_read(path):
    assert not keywords(path) & {('allow_pickle', True), ('weights_only', False)}
    assert not packages(path) & {'dill', 'joblib', 'shelve', 'marshal'}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            assert (owner, name) not in {('pickle', 'load'), ('pickle', 'loads')}
            if (owner, name) == ('torch', 'load'):
                assert 'weights_only' in {keyword.arg for keyword in node.keywords}


def test_one_module_unpickles_and_imports_nothing_for_it():
    """Its unpickler looks names up in a table: it never asks pickle.Unpickler, which would import them."""
    assert [NAMES[path] for path in OURS if packages(path) & {'pickle', '_pickle'}] == ['util/unpickle.py']
    tree = parse(REPOSITORY / 'util' / 'unpickle.py')
    uses = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {use for use in uses if use.startswith('pickle.')} == {'pickle.Unpickler', 'pickle.UnpicklingError'}
    (unpickler,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [ast.unparse(base) for base in unpickler.bases] == ['pickle.Unpickler']
    assert [node.name for node in unpickler.body if isinstance(node, ast.FunctionDef)] == ['find_class']
    assert sum(ast.unparse(node) == 'pickle.Unpickler' for node in ast.walk(tree)) == 1  # the base class
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {'super', 'getattr', '__import__', 'importlib.import_module', 'eval', 'exec'}


def test_core_has_no_flags_printing_devices_or_paths():
    for path in CORE:
        assert 'argparse' not in packages(path), path
        text = path.read_text()
        assert '.cuda(' not in text, path
        assert 'experiments/' not in text, path
        calls = {ast.unparse(node.func) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)}
        assert 'print' not in calls, path


def test_no_class_name_in_the_code():
    """Class names are in the JSON of a data set only (and in the drawing of the demo data)."""
    for path in OURS:
        words = {node.value for node in ast.walk(parse(path)) if isinstance(node, ast.Constant)}
        assert not words & {'aeroplane', 'diningtable', 'tvmonitor'}, path


# Documentation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('path', [*CORE, *UTIL], ids=NAMES.get)
def test_public_functions_are_documented(path):
    silent = [
        node.name
        for node in parse(path).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith('_')
        and not (ast.get_docstring(node) and node.returns)
    ]
    assert [name for name in silent if name not in ('boolean', 'floats')] == []


@pytest.mark.parametrize('path', OURS, ids=NAMES.get)
def test_modules_are_documented(path):
    assert ast.get_docstring(parse(path))


@pytest.mark.parametrize('path', OURS, ids=NAMES.get)
def test_cited_headings_exist(path):
    """A citation is: docs/method.md, "Heading"."""
    text = re.sub(r'\s+', ' ', path.read_text())
    for document, heading in re.findall(r'(docs/\w+\.md), "([^"]+)"', text):
        headings = re.findall(r'^#+ (.+)$', (REPOSITORY / document).read_text(), re.M)
        assert heading in headings, f'{document} has no heading "{heading}"'
    assert text.count('docs/method.md') == len(re.findall(r'docs/method\.md, "', text)), 'a citation without a heading'


def test_links_of_the_documents_exist():
    for document in DOCUMENTS:
        text = document.read_text()
        headings = re.findall(r'^#+ (.+)$', text, re.M)
        anchors = {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}
        for target in re.findall(r'\]\(([^)]+)\)', text):
            if target.startswith('#'):
                assert target[1:] in anchors, f'{document.name}: {target}'
            elif not target.startswith('http'):
                assert (document.parent / target.split('#')[0]).is_file(), f'{document.name}: {target}'


def test_no_path_of_a_machine_in_any_file():
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=REPOSITORY, capture_output=True)
    if listed.returncode:
        pytest.skip('not a git clone')
    wrong = ['/' + 'work/', '/' + 'home/', '/' + 'root/', '/' + 'Users/']
    for name in filter(None, listed.stdout.decode().split('\0')):
        try:
            text = (REPOSITORY / name).read_text()
        except (OSError, UnicodeDecodeError):
            continue
        assert [part for part in wrong if part in text] == [], name


# Language -----------------------------------------------------------------------------------------------------------

# Phrases that a native engineer would not write, with the usual word.
DIALECT = {
    r'\b(is|are) no [a-z]': 'is not a',
    r'\banew\b': 'again',
    r'\bmade otherwise\b': 'exists with different settings',
    r'\bstands there\b': 'is',
    r'\bwalked (CAM|map)': 'random-walk CAM',
    r'\bin place of\b': 'instead of',
    r'\bgoes? on where\b': 'resumes',
    r'\bthe plain way\b': 'baseline, reference',
    r'\bwhole or not at all\b': 'atomic',
    r'\bwhat those of them\b': 'name the subject',
    r'\bMETHOD\b': 'docs/method.md',
    r'\(KEEP\)': 'as published',
}


@pytest.mark.parametrize(
    'path',
    [*OURS, *DOCUMENTS, *sorted((REPOSITORY / 'tests').glob('*.py')), *sorted(REPOSITORY.glob('*/*.sh'))],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_plain_english(path):
    if path.name == 'test_house.py':
        return
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for phrase, better in DIALECT.items():
            assert not re.search(phrase, line), f'{path.name}:{number}: {line.strip()} ({better})'
