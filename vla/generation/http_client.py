"""JSON over HTTP to an inference server, with errors that say whether a repetition can help."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

RETRYABLE = (408, 425, 429)
"""Status codes below 500 of a server that is busy for now."""


class ServerUnavailable(Exception):
    """The server cannot be reached, is too slow, or fails for now: a repetition can help."""


class RequestRefused(Exception):
    """The server answered that it will not serve this request; `status` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


@dataclass(frozen=True)
class HttpClient:
    """Requests to the routes below `url`, each answered within `timeout_seconds`.

    The environment variable `key_variable` holds the key, where the server needs one.
    """

    url: str
    timeout_seconds: float
    key_variable: str = "OPENAI_API_KEY"

    def get(self, route: str) -> dict[str, Any]:
        """The answer to GET, as `post`."""
        return _object(self._send(urllib.request.Request(self.url.rstrip("/") + route)))

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to POST; empty where the server sends no JSON object.

        Raises:
            ServerUnavailable: no answer, or one that says to try again.
            RequestRefused: an answer that a repetition does not change.
        """
        return _object(self._post(route, body))

    def post_batch(self, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The answer to POST as a list of JSON objects; empty where the server sends no list."""
        answer = self._post(route, body)
        return [_object(entry) for entry in answer] if isinstance(answer, list) else []

    def _post(self, route: str, body: dict[str, Any]) -> object:
        return self._send(
            urllib.request.Request(
                self.url.rstrip("/") + route,
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
        )

    def _send(self, request: urllib.request.Request) -> object:
        key = os.environ.get(self.key_variable)
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_seconds) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            message = error.read().decode(errors="replace")[:500]
            if error.code >= 500 or error.code in RETRYABLE:
                raise ServerUnavailable(f"HTTP {error.code}: {message}") from None
            raise RequestRefused(error.code, message) from None
        except (OSError, HTTPException) as error:
            raise ServerUnavailable(f"{type(error).__name__}: {error}") from None
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except ValueError:
            raise ServerUnavailable(f"no JSON: {text[:200]!r}") from None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
