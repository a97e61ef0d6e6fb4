"""Ports for servers that tests start."""

import socket


def free_port() -> int:
    """Return a free port on 127.0.0.1, for a server that reuses addresses, as all of them do.

    A connection that was just closed keeps the port for a minute: the system does not
    give it to a process that asks for any port, such as this function in another process.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # who closes first keeps the port
        return port
