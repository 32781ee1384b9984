"""Timings of each stage next to a reference implementation: python3 -m benchmarks.run"""

import util.startup
