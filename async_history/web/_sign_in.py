"""The form to sign in with the token, and to sign out."""

from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from async_history.web._access import SESSION_COOKIE, SESSION_S, TokenAccess
from async_history.web._error_response import SIGN_IN_PATH
from async_history.web._render import render
from async_history.web._security import cookie

SIGN_OUT_PATH: Final = "/sign-out"


class SignIn:
    """Sessions of browsers: signing in by the form, and signing out.

    Args:
        tokens: checks the token.
    """

    def __init__(self, tokens: TokenAccess) -> None:
        self._tokens = tokens

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the form."""
        return [
            Route(SIGN_IN_PATH, self._form, methods=["GET"]),
            Route(SIGN_IN_PATH, self._sign_in, methods=["POST"]),
            Route(SIGN_OUT_PATH, self._sign_out, methods=["POST"]),
        ]

    async def _form(self, request: Request) -> Response:
        return render(request, "sign_in.html", is_wrong=False)

    async def _sign_in(self, request: Request) -> Response:
        if not self._tokens.is_token(request.state.form.get("token", "")):
            return render(request, "sign_in.html", is_wrong=True, status_code=403)
        return self._home(request, self._tokens.new_session(), SESSION_S)

    async def _sign_out(self, request: Request) -> Response:
        return self._home(request, "", 0)

    def _home(self, request: Request, session: str, max_age_s: int) -> Response:
        response = RedirectResponse(request.scope.get("root_path", "") + "/", 303)
        value = cookie(request, SESSION_COOKIE, session, max_age_s=max_age_s)
        response.headers.append("set-cookie", value)
        return response
