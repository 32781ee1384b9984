"""The paper: models and mathematics. Nothing here knows flags, folders or printing; the device follows the input."""

IGNORE = 255  # the label of pixels that count nowhere: VOC's void border, an unsure affinity label, padding
STRIDE = 16  # pixels of the image a cell of the class maps stands for (METHOD: layer3 strides, layer4 dilates)


class InputError(ValueError):
    """A fault in what the user gave (a flag, a file), told in one line that names it and says what to do."""
