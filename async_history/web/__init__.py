"""A page to look at a history, and its JSON API. It needs the extra `web`.

from async_history.web import Access, history_app
app.mount("/history", history_app(history, authorize=…))
"""

from async_history._core.public import show_as
from async_history.web._access import Access, Authorize, TokenAccess
from async_history.web._app import history_app

__all__ = ["Access", "Authorize", "TokenAccess", "history_app"]

show_as(__name__, __all__, globals())
