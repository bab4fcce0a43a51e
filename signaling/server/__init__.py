"""The stand-alone host: WebSocket, tickets, health and metrics."""

from signaling.server.server import ModerationServer
from signaling.server.tickets import InvalidTicket, Ticket, Tickets, make_ticket

__all__ = ["InvalidTicket", "ModerationServer", "Ticket", "Tickets", "make_ticket"]
