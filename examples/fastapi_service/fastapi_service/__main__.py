"""Serve: python -m fastapi_service --db history.db --port 8000."""

import argparse
import asyncio
import socket

import uvicorn

from fastapi_service.app import new_app


class Server(uvicorn.Server):
    """A server that ends the feeds before it waits for the requests that are under way."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app.state.stopping.set()
        await super().shutdown(sockets)


parser = argparse.ArgumentParser(prog="python -m fastapi_service")
parser.add_argument("--db", default="history.db", help="URL of the history (history.db)")
parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
asked = parser.parse_args()
app = new_app(asked.db)
config = uvicorn.Config(app, host=asked.host, port=asked.port, timeout_graceful_shutdown=10)
asyncio.run(Server(config).serve())
