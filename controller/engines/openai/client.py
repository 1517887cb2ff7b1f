"""An OpenAI-compatible server over HTTP: what it serves, its events, and its refusals in words."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ....errors import CapabilityError, ModelError, OptionError, did_you_mean
from .backend import StreamError

if TYPE_CHECKING:
    import httpx

KEYS = ("TERSELY_API_KEY", "OPENAI_API_KEY")
_CONNECT = 10.0  # seconds
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # statuses of what may pass


class RefusedError(ModelError):
    """The server understood a request and will not serve it; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def missing(self) -> bool:
        """Whether what was asked for is not there: the path, or the model."""
        return self.status == 404


class OpenAIClient:
    """The server at a base URL, with or without its /v1; used in one event loop.

    api_key: None takes that of the environment, `KEYS`. timeout: seconds that it may be silent for.
    Raises OptionError for what is no URL, CapabilityError without httpx.
    """

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float = 120.0) -> None:
        self.url = _normal(base_url)
        self.timeout = timeout
        self._key = api_key or next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        self._httpx = _library()
        self._client: httpx.AsyncClient | None = None

    async def models(self) -> dict[str, dict[str, Any]]:
        """The models it lists by name; empty where it keeps no list. Raises ModelError if nothing answers."""
        try:
            listed = await self.ask("GET", "/models")
        except RefusedError as error:
            if error.status in (404, 405, 501):
                return {}
            raise
        except StreamError as error:
            raise ModelError(f"no server answers at {self.url} ({error}); start it, or check the URL") from error
        return {str(one["id"]): one for one in listed.get("data") or () if isinstance(one, dict) and "id" in one}

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request, its reply in one piece; raises as `events`."""
        httpx = self._httpx
        try:
            reply = await self._open().request(method, self.url + path, json=body, headers=self._headers())
            if reply.status_code >= 400:
                raise self._refusal(reply.status_code, path, reply.text)
            found = reply.json()
        except httpx.TimeoutException as error:
            raise self._late(error) from error
        except httpx.TransportError as error:
            raise StreamError(_said(error)) from error
        except json.JSONDecodeError:
            raise ModelError(f"{self.url}{path} answers with no JSON; check that the URL is that of its API") from None
        if not isinstance(found, dict):
            raise ModelError(
                f"{self.url}{path} answers with {type(found).__name__}; check that the URL is that of its API"
            )
        return found

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed reply; closing this closes the connection, which is how a server is told to stop.

        Raises StreamError for what may pass, RefusedError for a request that it will not serve, ModelError for other
        trouble.
        """
        httpx = self._httpx
        try:
            async with self._open().stream("POST", self.url + path, json=body, headers=self._headers()) as reply:
                if reply.status_code >= 400:
                    raise self._refusal(reply.status_code, path, (await reply.aread()).decode("utf-8", "replace"))
                async for line in reply.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[len("data:") :].strip()
                    if data == "[DONE]":
                        return
                    event = json.loads(data)
                    if error := event.get("error"):
                        raise self._refusal(_code(error), path, json.dumps(error))
                    yield event
        except httpx.TimeoutException as error:
            raise self._late(error) from error
        except httpx.TransportError as error:
            raise StreamError(_said(error)) from error
        except json.JSONDecodeError as error:
            raise StreamError(f"an event is no JSON: {error}") from error

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            httpx = self._httpx
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
            timeout = httpx.Timeout(self.timeout, connect=min(_CONNECT, self.timeout))
            self._client = httpx.AsyncClient(timeout=timeout, limits=limits)
        return self._client

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _late(self, error: Exception) -> Exception:
        if isinstance(error, self._httpx.ConnectTimeout):
            return StreamError(_said(error))
        return ModelError(f"{self.url} was silent for {self.timeout:g} s; give it longer (timeout), or look after it")

    def _refusal(self, status: int, path: str, text: str) -> Exception:
        """What a status of 400 or more means."""
        said = _message(text)
        if status in (401, 403):
            got = "the API key" if self._key else "a request without an API key"
            return ModelError(f"{self.url} refuses {got} ({status}: {said}); give api_key, or set {' or '.join(KEYS)}")
        if status in _PASSING:
            return StreamError(f"{status}: {said}")
        return RefusedError(f"{self.url}{path} refuses the request ({status}: {said})", status)


async def unknown_model(server: OpenAIClient, model: str, error: RefusedError) -> ModelError:
    """The error for a model that a server does not know, with those that it does."""
    listed = await server.models()
    if not listed or model in listed:
        return ModelError(f"{error}; check the URL: this may be a server of another kind of endpoint")
    return ModelError(f"{server.url} has no model {model!r}; {did_you_mean(model, listed)}")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model by the name to ask for it, and all names it goes by; context_length: None where that is not said."""

    name: str
    names: tuple[str, ...]
    context_length: int | None


async def choose_model(server: OpenAIClient, model: str | None) -> ServedModel:
    """The model to ask for; None takes the only one. Raises OptionError where that leaves a choice."""
    listed = await server.models()
    if model is None:
        if len(listed) != 1:
            many = f"serves {', '.join(listed)}" if listed else "does not say what it serves"
            raise OptionError(f"{server.url} {many}; name a model")
        model = next(iter(listed))
    card = listed.get(model, {})
    length, root = card.get("max_model_len"), card.get("root")
    names = (model, root) if isinstance(root, str) else (model,)
    return ServedModel(model, names, length if isinstance(length, int) else None)


def _normal(url: str) -> str:
    """The URL that paths such as /completions are put after."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise OptionError(f"{url!r} is no URL of a server; accepted: such as http://localhost:8000/v1")
    bare = url.strip().rstrip("/")
    return bare if parts.path.strip("/") else f"{bare}/v1"


def _library() -> Any:
    try:
        import httpx
    except ImportError:
        raise CapabilityError("httpx is not installed, which talks to servers; pip install 'tersely[serve]'") from None
    return httpx


def _message(said: Any) -> str:
    """What a server says of an error, of which there are many shapes, in one line."""
    if isinstance(said, str):
        try:
            parsed = json.loads(said)
        except json.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            return " ".join(said.split())[:300] or "no reason given"
        said = parsed
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(key):
            return _message(said[key])
    return " ".join(str(said).split())[:300]


def _code(error: Any) -> int:
    """The status of an error that is told in a stream; 500 where none is."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
