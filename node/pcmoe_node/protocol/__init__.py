"""The node's protocol as pure state machines: no sockets, no threads, no clock, no torch."""
