"""The wire: what clients send, what they are sent, and how both look as JSON."""
