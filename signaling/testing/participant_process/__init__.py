"""
The child's side of `ParticipantProcess`: real participants, kept where a native crash takes nobody else along.

Requests come in as lines of JSON, answers and events go out the same way. It ends when its input does.
"""
