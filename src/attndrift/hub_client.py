"""Asking the hub in bounded time: a host that cannot be reached is asked once in a process, with one clear message.

``huggingface_hub`` tries again for minutes where there is no network, and every library above it tries again for
itself. The client made here goes below them all (``huggingface_hub.set_client_factory``): a host that did not answer
is not asked again, and no request waits longer than :data:`SILENCE` seconds for the next byte.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled

# Imports inside functions: these packages take time to load, which only who needs them pays.

SILENCE = 10.0
"""Seconds without an answer, or without a byte of it, after which a host counts as out of reach."""

LONGEST_WAIT = 10.0
"""Seconds that a host may tell this process to wait (``Retry-After``) before it is an error instead."""

T = TypeVar("T")

_unreachable: dict[str, str] = {}
_refusals: dict[str, tuple[str, str]] = {}
_lock = threading.Lock()


class HubUnreachable(OfflineModeIsEnabled):
    """A host that is not asked (again): out of reach, or it limits requests. The message says which, and why.

    The libraries take it for their own offline mode: what is in their cache is used, and nothing is tried again.
    """


def endpoint() -> str:
    """The address of the hub: ``HF_ENDPOINT``, else the public one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def offline() -> bool:
    """Whether the user has switched the network off (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def why_unreachable() -> str | None:
    """Why the hub is not asked, in words; None where it may be."""
    if offline():
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        url = httpx.URL(endpoint())
    except httpx.InvalidURL:
        return "HF_ENDPOINT is no address"
    if url.scheme not in ("http", "https"):
        return "HF_ENDPOINT does not begin with http:// or https://"
    return _unreachable.get(_host(url))


def _host(url: Any) -> str:
    """Host and port of an ``httpx.URL``: lower case, no default port, no user or password."""
    return str(url.netloc.decode())


def refusals() -> dict[str, tuple[str, str]]:
    """Refusals that may concern the whole hub, as :func:`explain` said them: what is wrong, and what to do."""
    return dict(_refusals)


def forget_unreachable() -> None:
    """Ask every host again."""
    with _lock:
        _unreachable.clear()
        _refusals.clear()


def within(seconds: float, work: Callable[[], T]) -> T:
    """What ``work`` returns. Raises ``TimeoutError`` after ``seconds``: for libraries that try again without an end."""
    done: list[T] = []
    problem: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if problem:
        raise problem[0]
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return done[0]


def _mark(host: str, reason: str) -> None:
    with _lock:
        _unreachable.setdefault(host, f"{host}: {reason}")


def explain(error: BaseException) -> str:
    """What an error of ``huggingface_hub`` means, as the end of a sentence: no status code alone, no advice of theirs."""
    from huggingface_hub import errors

    # The libraries wrap one error in the next; the first that says what happened counts.
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, HubUnreachable):
            return str(seen)
        if isinstance(seen, errors.GatedRepoError):
            return "it is gated: ask for access on its page, then log in (hf auth login, or HF_TOKEN)"
        if isinstance(seen, errors.RevisionNotFoundError):
            return "it has no such revision"
        if isinstance(seen, errors.RepositoryNotFoundError):
            fault = "the hub has no such repository, or does not show it"
            return _refusal(fault, "check the name, or log in (hf auth login)")
        if isinstance(seen, errors.HfHubHTTPError) and seen.response is not None:
            return _explain_status(seen.response.status_code, seen.response.headers)
        seen = seen.__cause__ or seen.__context__
    why = why_unreachable()
    if why is not None:
        return why
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _explain_status(status: int, headers: Any) -> str:
    if status == 429:
        wait = headers.get("Retry-After", "a few")
        unit = "second" if wait == "1" else "seconds"
        return _refusal("the hub limits requests (429)", f"try again in {wait} {unit}, or log in")
    if status in (401, 403):
        return _refusal(f"the hub refuses access ({status})", "log in (hf auth login, or HF_TOKEN)")
    if status >= 500:
        return _refusal(f"the hub has a fault of its own ({status})", "try again later")
    return f"the hub answers with status {status}"


def _refusal(fault: str, remedy: str) -> str:
    sentence = f"{fault}: {remedy}"
    with _lock:
        _refusals[sentence] = (fault, remedy)
    return sentence


@functools.cache
def bound_requests() -> None:
    """Have every request to the hub in this process go through the client described above; done once."""
    from huggingface_hub import get_session, set_client_factory
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    # The library's own client: its hooks, its proxies and whatever factory the user has set.
    base = get_session()
    hooks = base.event_hooks

    class Stream(httpx.SyncByteStream):
        """A body whose silence is remembered."""

        def __init__(self, stream: Any, host: str) -> None:
            self._stream, self._host = stream, host

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._stream
            except httpx.TimeoutException:
                _mark(self._host, f"went silent for {SILENCE:g} seconds within a transfer")
                raise

        def close(self) -> None:
            self._stream.close()

    class Client(httpx.Client):
        """Asks a host once."""

        def send(self, request: Any, **options: Any) -> Any:
            host = _host(request.url)
            if host in _unreachable:
                raise HubUnreachable(_unreachable[host])
            # Of all requests alike: the library has some with no limit, and some with one that a slow hub would miss.
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), SILENCE)
            try:
                response = super().send(request, **options)
            except httpx.TimeoutException:
                _mark(host, f"no answer within {SILENCE:g} seconds")
                raise HubUnreachable(_unreachable[host]) from None
            except httpx.ConnectError as error:
                _mark(host, f"cannot be reached ({error})")
                raise HubUnreachable(_unreachable[host]) from error
            if response.status_code == 429:
                _refuse_long_waits(response, host)
            if options.get("stream"):
                response.stream = Stream(response.stream, host)
            return response

    def make() -> Any:
        return Client(event_hooks=hooks, follow_redirects=True, timeout=SILENCE)

    set_client_factory(make)


def _refuse_long_waits(response: Any, host: str) -> None:
    text = response.headers.get("Retry-After", "")
    if text.isdigit() and int(text) > LONGEST_WAIT:
        response.close()
        _mark(host, f"limits requests (429) and asks to wait {text} seconds; try again then, or log in")
        raise HubUnreachable(_unreachable[host])
