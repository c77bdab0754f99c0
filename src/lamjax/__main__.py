"""``python -m lamjax``: the same as the ``lamjax`` script."""

import sys

from lamjax.cli import main

sys.exit(main())
