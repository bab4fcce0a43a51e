"""Moderation for LiveKit meetings."""

__version__ = "0.1.0"
