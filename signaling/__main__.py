"""`python -m signaling` is `livekit-moderation`."""

import sys

from signaling.cli import main

if __name__ == "__main__":
    sys.exit(main())
