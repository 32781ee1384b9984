"""The commands in a Markdown document."""

import importlib
import re
import shlex


def module_of(stage: str):
    return importlib.import_module(stage)


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """Return (module, words) of the Python commands in a Markdown document, in blocks or in a line.

    Variables that a line sets to quoted words are replaced, $D stays. Blocks of a language (```python) are not shell.
    """
    fenced = re.findall(r'^```(\w*)\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if not language]
    lines = [line for block in blocks for line in _joined(block.replace('\\\n', ' ').splitlines())]
    lines += re.findall(r'`(python3 -m [^`]+)`', text)
    found, variables = [], {}
    for line in lines:
        for name, value in variables.items():
            line = line.replace(f'${name}', value)
        if match := re.fullmatch(r'([A-Z]+)="(.+)"', line):
            variables[match[1]] = match[2]
        match = re.fullmatch(r'python3 (?:(\w+)\.py|-m (\w+\.[a-z]\w+))( .*)?', line)
        if match:
            found.append((match[1] or match[2], shlex.split(match[3] or '')))
    return found


def _joined(lines: list[str]) -> list[str]:
    """Join the lines of quoted words."""
    joined = []
    for line in lines:
        if joined and joined[-1].startswith('python3 ') and joined[-1].count("'") % 2:
            joined[-1] += f' {line}'
        else:
            joined.append(line)
    return joined
