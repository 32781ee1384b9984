"""Experiments on top of the nine stages; ablation, gradients and rounding run as python3 -m recipes.NAME"""

import util.startup
