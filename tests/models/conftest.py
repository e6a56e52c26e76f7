"""A hub on the loopback, for this process: an address, and a cache, of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from attndrift import hub_client
from attndrift.models.hub import forget_answers

sys.path.append(str(Path(__file__).parents[1] / "hub"))


@pytest.fixture(scope="session")
def running_hub() -> Iterator[Any]:
    from hub_models import model_repositories
    from hub_server import Hub

    with Hub(model_repositories()) as hub:
        yield hub


@pytest.fixture
def point_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Called with an address, it does what HF_ENDPOINT would in a new process."""

    def point(endpoint: str) -> None:
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point


@pytest.fixture
def hub(
    running_hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point_to: Callable[[str], None]
) -> Iterator[Any]:
    """The hub's double, asked for the first time."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    point_to(running_hub.endpoint)
    running_hub.requests.clear()
    forget_answers()
    yield running_hub
    forget_answers()
    hub_client.bound_requests.cache_clear()
    set_client_factory(default_client_factory)
