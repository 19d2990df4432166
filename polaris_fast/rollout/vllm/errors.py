"""How a vLLM server can fail."""

from __future__ import annotations

from ...types import UserError


class ServerError(UserError):
    """A server cannot be used any more, or cannot do what it was asked; the run cannot go on."""


class Unreachable(Exception):
    """No answer, a broken connection or a status of 5xx: another try, or server, may do."""


class Dropped(Unreachable):
    """The connection broke before the answer: nobody knows whether the server did as asked."""
