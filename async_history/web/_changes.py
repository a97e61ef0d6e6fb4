"""Changes by forms: each is previewed, then done exactly as previewed.

A form is sent twice: for a preview, then with the preview's digest, which confirms it. If the
history has changed meanwhile, the digests differ. Then nothing is done, and a new preview is shown.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from async_history._core.reading.timeline import Moment
from async_history.web._fields import Fields
from async_history.web._json import as_json
from async_history.web._show import show
from async_history.web._view import View

CONFIRM_FIELD: Final = "preview"
"""The field with the digest of the preview."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A kind of change.

    Attributes:
        name: its path, and its name in the library.
        run: makes the change, or returns what it would do. It gets the view, the fields, and
            whether this is a preview.
    """

    name: str
    run: Callable[[View, Fields, bool], Awaitable[Any]]


def change_routes() -> list[BaseRoute]:
    """Return the routes of the changes, and of the page with their forms."""
    return [
        Route("/change", _forms, methods=["GET"]),
        *(Route(f"/{change.name}", _answering(change), methods=["POST"]) for change in _CHANGES),
    ]


async def _forms(request: Request) -> Response:
    if not request.state.view.can_write:
        raise HTTPException(403, "this page is read-only, or you may not change the history")
    return show(request, "change.html", asked=Fields(request.query_params).as_dict())


def _answering(change: Change) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        view: View = request.state.view
        given = dict(request.state.form)
        confirmed = given.pop(CONFIRM_FIELD, None)
        asked = Fields(given)
        planned = await change.run(view, asked, True)
        digest = _digest(given, planned)
        is_confirmed = confirmed == digest
        return show(
            request,
            "changed.html" if is_confirmed else "preview.html",
            kind=change.name,
            asked=asked.as_dict(),
            report=await change.run(view, asked, False) if is_confirmed else planned,
            digest=digest,
            is_stale=confirmed is not None and not is_confirmed,
        )

    return answer


def _digest(given: dict[str, str], planned: Any) -> str:
    """Return the digest of a preview, without the ids that are new each time."""
    shown = as_json(planned)
    shown.pop("id", None)
    text = json.dumps([given, shown], ensure_ascii=True, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()


async def _restore(view: View, asked: Fields, is_preview: bool) -> Any:
    memory_id = asked.required("memory_id")
    to: Moment | None = asked.number("version", least=1, most=10**9)
    to = asked.required_instant("to") if to is None else to
    if is_preview:
        return await view.restoration(memory_id, to=to)
    return await view.restore(memory_id, to=to)


async def _rollback(view: View, asked: Fields, is_preview: bool) -> Any:
    return await view.rollback(
        to=asked.required_instant("to"),
        memory_ids=asked.memory_ids() or None,
        dry_run=is_preview,
        **asked.owner(),
    )


async def _undo(view: View, asked: Fields, is_preview: bool) -> Any:
    return await view.undo(run_id=asked.text("run_id"), cause=asked.cause(), dry_run=is_preview)


async def _erase(view: View, asked: Fields, is_preview: bool) -> Any:
    return await view.erase(
        memory_ids=asked.memory_ids(),
        record_ids=asked.lines("record_ids"),
        actor_id=asked.text("actor_id"),
        session_scopes=asked.lines("session_scopes"),
        reason=asked.required("reason"),
        dry_run=is_preview,
        **asked.owner(),
    )


_CHANGES: Final = (
    Change(name="restore", run=_restore),
    Change(name="rollback", run=_rollback),
    Change(name="undo", run=_undo),
    Change(name="erase", run=_erase),
)
