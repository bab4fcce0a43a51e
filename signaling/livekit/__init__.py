"""All that touches LiveKit."""
