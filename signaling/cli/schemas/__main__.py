"""`python -m signaling.cli.schemas DIR`."""

import sys

from signaling.cli.schemas.folder import main

sys.exit(main(sys.argv[1:]))
