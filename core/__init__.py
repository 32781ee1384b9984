"""Models and mathematics of the paper. No flags or printing; tensors stay on their device."""

IGNORE = 255  # label of pixels left out of losses and scores: VOC's void border, unsure affinity labels, padding
STRIDE = 16  # image pixels per cell of the class maps: every backbone has output stride 16


class UserError(ValueError):
    """Invalid user input. The one-line message names the value or file and the remedy.

    `option` is the flag whose value is wrong: the message begins with its name, before which scripts that have this
    flag put the dashes.
    """

    def __init__(self, message: str, option: str | None = None):
        super().__init__(f'{option} {message}' if option else message)
        self.option = option

    def __reduce__(self):
        return _restore, (str(self), self.option)


def _restore(message: str, option: str | None) -> UserError:
    error = UserError(message)
    error.option = option
    return error
