"""An OpenAI-compatible server on loopback: a scripted model, deterministic embeddings."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIMENSIONS = 16

Script = Callable[[list[dict[str, Any]]], str]
"""Returns the model's answer to a chat's messages."""


def embedding(text: str) -> list[float]:
    """Return a text's vector: equal for the same words, near for texts that share some."""
    vector = [0.0] * DIMENSIONS
    for word in text.lower().split():
        vector[sha256(word.encode()).digest()[0] % DIMENSIONS] += 1.0
    length = sum(value * value for value in vector) ** 0.5 or 1.0
    return [value / length for value in vector]


class Model:
    """The server's answers. Tests set `script`."""

    def __init__(self) -> None:
        self.url = ""
        self.script: Script = lambda messages: '{"memory": [], "facts": []}'
        self.chats: list[list[dict[str, Any]]] = []

    def answer(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON body for a request."""
        if path.endswith("/embeddings"):
            texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
            vectors = [
                {"object": "embedding", "index": n, "embedding": embedding(text)}
                for n, text in enumerate(texts)
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return {"object": "list", "data": vectors, "model": "test", "usage": usage}
        self.chats.append(request["messages"])
        message = {"role": "assistant", "content": self.script(request["messages"])}
        return {
            "id": "chat",
            "object": "chat.completion",
            "created": 0,
            "model": "test",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }


@contextlib.contextmanager
def openai_server() -> Iterator[Model]:
    """Run the server; yield its model, with its URL."""
    model = Model()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(model.answer(self.path, request)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    model.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield model
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
