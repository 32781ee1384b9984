"""The house rules of the code base."""

import ast
import subprocess

import pytest
from conftest import REPOSITORY, STAGES

CORE = sorted((REPOSITORY / 'core').glob('*.py'))
TOOLS = sorted((REPOSITORY / 'tools').glob('*.py'))
SCRIPTS = [REPOSITORY / f'{stage}.py' for stage in STAGES]
OURS = [
    *SCRIPTS,
    *CORE,
    *TOOLS,
    *(path for folder in ('benchmarks', 'recipes') for path in sorted((REPOSITORY / folder).glob('*.py'))),
]
NAMES = {path: str(path.relative_to(REPOSITORY)) for path in OURS}


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


def is_program(path) -> bool:
    return "__name__ == '__main__'" in path.read_text()


def functions(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(parse(path)) if isinstance(node, kinds)]


def test_every_script_at_the_root_is_a_stage():
    assert {path.stem for path in REPOSITORY.glob('*.py')} == set(STAGES)


@pytest.mark.parametrize('path', SCRIPTS, ids=NAMES.get)
def test_scripts_are_short(path):
    assert len(path.read_text().splitlines()) < 200


@pytest.mark.parametrize('path', OURS, ids=NAMES.get)
def test_functions_are_short(path):
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path)}
    assert {name: lines for name, lines in long.items() if lines > 80} == {}


def test_core_and_tools_do_not_know_each_other():
    assert [NAMES[path] for path in CORE if 'tools' in packages(path)] == []
    assert [NAMES[path] for path in TOOLS if 'core' in packages(path) and not is_program(path)] == []


def test_nothing_imports_a_stage_script():
    """But tests, benchmarks and recipes."""
    assert [NAMES[path] for path in [*SCRIPTS, *CORE, *TOOLS] if packages(path) & set(STAGES)] == []


def test_pydensecrf_has_one_door():
    assert [NAMES[path] for path in [*SCRIPTS, *CORE, *TOOLS] if 'pydensecrf' in packages(path)] == ['core/crf.py']


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


def test_core_knows_no_flags_no_printing_no_devices():
    for path in CORE:
        assert 'argparse' not in packages(path), path
        text = path.read_text()
        assert '.cuda(' not in text, path
        assert 'experiments/' not in text, path
        calls = {ast.unparse(node.func) for node in ast.walk(parse(path)) if isinstance(node, ast.Call)}
        assert 'print' not in calls, path


def test_no_class_name_or_count_in_the_code():
    """They are the data set's: a data set's JSON and nothing else holds them (the drawn set names its figures)."""
    for path in OURS:
        if path.name == 'make_demo_data.py':
            continue
        words = {node.value for node in ast.walk(parse(path)) if isinstance(node, ast.Constant)}
        assert not words & {'aeroplane', 'diningtable', 'tvmonitor'}, path


@pytest.mark.parametrize('path', CORE, ids=NAMES.get)
def test_public_functions_of_core_say_what_they_do(path):
    silent = [
        node.name
        for node in parse(path).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith('_')
        and not (ast.get_docstring(node) and node.returns)
    ]
    assert silent == []


@pytest.mark.parametrize('path', OURS, ids=NAMES.get)
def test_modules_say_what_they_are_for(path):
    assert ast.get_docstring(parse(path))


@pytest.mark.parametrize('path', SCRIPTS, ids=NAMES.get)
def test_importing_a_script_has_no_side_effect(path):
    """Imports, functions and constants; anything that runs stands behind the guard."""
    for node in parse(path).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant)
        elif isinstance(node, ast.If):
            assert ast.unparse(node.test) == "__name__ == '__main__'"
        else:
            assert isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.Assign))
    names = [node.name for node in functions(path)]
    assert {'parse_args', 'main'} <= set(names)


def test_no_path_of_a_machine_in_any_file():
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=REPOSITORY, capture_output=True)
    if listed.returncode:
        pytest.skip('no git here')
    wrong = ['/' + 'work/', '/' + 'home/', '/' + 'root/', '/' + 'Users/']
    for name in filter(None, listed.stdout.decode().split('\0')):
        try:
            text = (REPOSITORY / name).read_text()
        except (OSError, UnicodeDecodeError):
            continue
        assert [part for part in wrong if part in text] == [], name
