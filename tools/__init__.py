"""Programs that people run from the root of the repository: python3 -m tools.NAME."""

import util.startup
