"""What is counted, for Prometheus."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

COMMANDS: Final = Counter("moderation_commands", "Commands by action and by what came of them.", ["action", "result"])
COMMAND_DURATION: Final = Histogram(
    "moderation_command_duration_seconds", "From receiving a command to its last answer.", ["action"]
)
COMMANDS_WAITING: Final = Gauge("moderation_commands_waiting", "Commands that wait for their meeting's turn.")
LIVEKIT_CALLS: Final = Counter(
    "moderation_livekit_calls", "RoomService calls by method and result.", ["method", "result"]
)
LIVEKIT_CALL_DURATION: Final = Histogram(
    "moderation_livekit_call_duration_seconds", "RoomService calls, from sending to the answer.", ["method"]
)
DRIFT: Final = Counter("moderation_drift", "Times that LiveKit was found to disagree, by what showed it.", ["cause"])
REPAIRS: Final = Counter(
    "moderation_repairs", "Of these, those about which LiveKit was set right, by what showed them.", ["cause"]
)
SETTLING: Final = Gauge("moderation_settling", "People about whom LiveKit is still to be told, or to be asked again.")
BYPASSES: Final = Counter("moderation_bypasses", "Tracks that got round what holds, and were stopped.")
WEBHOOKS: Final = Counter("moderation_webhooks", "Webhooks from LiveKit, by what came of them.", ["result"])
MEETINGS: Final = Gauge("moderation_meetings", "Meetings that this process looks after.")
SESSIONS: Final = Gauge("moderation_sessions", "Participants joined through this process.")
STORE_FAULTS: Final = Counter(
    "moderation_store_faults", "Times that the store said that something went wrong with it, by what.", ["fault"]
)
CONNECTIONS: Final = Gauge("moderation_connections", "Open WebSocket connections.")
TASKS: Final = Gauge("moderation_tasks", "Tasks of this process' event loop.")
BAD_REQUESTS: Final = Counter(
    "moderation_bad_requests", "Requests to the internal HTTP that are none, by what is wrong.", ["error"]
)
LOG_LINES_LEFT_OUT: Final = Counter(
    "moderation_log_lines_left_out", "Lines that were not written to the log, by why.", ["cause"]
)
CONNECTIONS_REFUSED: Final = Counter(
    "moderation_connections_refused", "Connections that were given no place, by why.", ["reason"]
)
