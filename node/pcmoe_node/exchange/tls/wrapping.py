"""TLS over a connected socket, that leaves none open where it can't be."""

import socket
import ssl

from pcmoe_node.exchange.tls.tap import socket_class


def wrapped(raw: socket.socket, context: ssl.SSLContext, server_name: str | None) -> ssl.SSLSocket:
    """TLS over a connected socket, its handshake still to do; closes the socket when it can't be."""
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context.sslsocket_class = socket_class()
        return context.wrap_socket(
            raw,
            server_side=server_name is None,
            server_hostname=server_name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except OSError as error:
        raw.close()
        _close_taken_over(error)
        raise


def _close_taken_over(error: OSError) -> None:
    """Close the socket that `ssl` took over from ours and lost, as it does where the peer has reset the connection."""
    at = error.__traceback__
    while at is not None:
        taken = at.tb_frame.f_locals.get("self")
        if isinstance(taken, ssl.SSLSocket):
            taken.close()
        at = at.tb_next
