"""Models and mathematics of the paper. No flags or printing; tensors stay on their device."""

IGNORE = 255  # label of pixels left out of losses and scores: VOC's void border, unsure affinity labels, padding
STRIDE = 16  # image pixels per cell of the class maps: every backbone has output stride 16


class UserError(ValueError):
    """Invalid user input. The one-line message names the value or file and the remedy.

    A message about a value begins with its name, such as "domain 'x': ...". Where the name is that of a flag,
    util/stage.py puts the dashes before it.
    """
