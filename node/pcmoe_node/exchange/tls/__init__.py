"""The transport between organisations: sockets, TLS 1.3, both sides authenticated."""

from pcmoe_node.exchange.tls.transport import TlsTransport

__all__ = ["TlsTransport"]
