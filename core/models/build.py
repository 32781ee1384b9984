"""A network from the metadata of its model file."""

from core import UserError
from core.models.affinitynet import AffinityNet
from core.models.classifier import Classifier
from core.models.network import Network
from core.models.segmenters import SEGMENTERS, build_segmenter


def build_network(meta: dict) -> Network:
    """Return the network that metadata describe, with random weights.

    Reads `network` (Classifier, AffinityNet or one of SEGMENTERS), `backbone`, `classes` (names, without the
    background) and, if they are given, `mode`, `use_gn` and `background` (false: the data set has none). Raises
    UserError for names that do not exist here.
    """
    network, backbone, mode = meta['network'], meta['backbone'], meta.get('mode', 'fix')
    if network == 'AffinityNet':
        return AffinityNet(backbone)
    if network == 'Classifier':
        return Classifier(backbone, len(meta['classes']), mode)
    if network in SEGMENTERS:
        outputs = len(meta['classes']) + meta.get('background', True)
        return build_segmenter(network, backbone, outputs, mode, meta.get('use_gn', True))
    raise UserError(f'network {network!r} is not one of Classifier, AffinityNet, {", ".join(SEGMENTERS)}')
