"""Embeddings of many texts at once, if the embedding model supports it."""

from collections.abc import Iterable
from typing import Any


class Embeddings:
    """The embeddings of a part of a rollback.

    Args:
        model: mem0's embedding model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[str, Any] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Compute these embeddings in one call, if the model has `embed_batch`. It blocks.

        If that call fails, each text is embedded separately later, so that a text that the model
        refuses affects only its own memory.
        """
        wanted = list(dict.fromkeys(texts))
        embed_batch = getattr(self._model, "embed_batch", None)  # since mem0ai 2.0
        if embed_batch is None or len(wanted) < 2:
            return
        try:
            found = list(embed_batch(wanted, "update"))
        except Exception:  # raised again by `of`, for the affected texts
            return
        if len(found) == len(wanted):
            self._known = dict(zip(wanted, found, strict=True))

    def of(self, text: str) -> Any:
        """Return the embedding of a text. It blocks, and may fail."""
        known = self._known.get(text)
        return self._model.embed(text, "update") if known is None else known
