"""Models and mathematics of the paper. No flags or printing; tensors stay on their device."""

import re

IGNORE = 255  # label of pixels left out of losses and scores: VOC's void border, unsure affinity labels, padding
STRIDE = 16  # image pixels per cell of the class maps: every backbone has output stride 16

# Characters that move a terminal's cursor, clear its screen, break lines or reverse the order of letters, or are not
# text.
CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]')

LINE = 1500  # characters of a line of an error


def has_control_characters(name: str) -> bool:
    """Return whether a name contains control characters, line separators, overrides of direction, or no text."""
    return CONTROL.search(name) is not None


def printable(text: str) -> str:
    """Return a text with its control characters as escapes and long lines shortened; line breaks stay."""
    text = CONTROL.sub(lambda found: found[0] if found[0] == '\n' else ascii(found[0])[1:-1], text)
    lines = (
        line if len(line) <= LINE else f'{line[: LINE // 2]} ... {line[-LINE // 2 :]}' for line in text.split('\n')
    )
    return '\n'.join(lines)


class UserError(ValueError):
    """Invalid user input. The one-line message names the value or file and the remedy, without control characters.

    `option` is the flag whose value is wrong. The message begins with its name; scripts that have this flag add the
    dashes.
    """

    def __init__(self, message: str, option: str | None = None):
        super().__init__(printable(f'{option} {message}' if option else message))
        self.option = option

    def __reduce__(self):
        return _restore, (str(self), self.option)


class DataWarning(UserWarning):
    """A possible fault of a data set, on one line. util/script.py prints it."""


def _restore(message: str, option: str | None) -> UserError:
    error = UserError(message)
    error.option = option
    return error
