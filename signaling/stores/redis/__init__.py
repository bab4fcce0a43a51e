"""A store for several nodes, in Redis or Valkey."""

from signaling.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
