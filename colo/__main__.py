"""``python -m colo`` is the ``colo`` command."""

import sys

from colo.cli import main

if __name__ == "__main__":
    sys.exit(main())
