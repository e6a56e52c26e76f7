"""The marker in an object store that names the one driver of a study there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from attndrift.study.driver import MARKER, TAKE_OVER, Driver, DriverReplaced, StudyLocked
from attndrift.study.objects import ObjectStore


@dataclass(frozen=True)
class DriverMarker:
    """``.driver.json`` of the study at ``url``, which ``store`` holds."""

    store: ObjectStore
    url: str

    @property
    def path(self) -> str:
        """Where it lies in the store."""
        return self.store.path(MARKER)

    def read(self) -> Driver | None:
        """The driver that it names; None where there is no marker."""
        content = self.store.read(self.path)
        return None if content is None else Driver.parse(content)

    def take(self, say: Callable[[str], None], *, take_over: bool) -> str:
        """Make this process the driver, and return its token. Raises :class:`StudyLocked` where another one is."""
        mine = Driver.current()
        other = self.read()  # before creating: some stores take no notice of a condition
        if other is None and not self.store.create(self.path, mine.to_bytes()):
            other = self.read()
        if other is not None:
            ended = other.has_ended()
            if not ended and not take_over:
                raise self._locked_by(other)
            then = "ended without removing its marker" if ended else "stops at its next write"
            say(f"{self.url}: this driver takes the study over; the one before ({other}) {then}")
            self.store.write(self.path, mine.to_bytes())
        now = self.read()
        if now is None or now.token != mine.token:  # another one has begun at the same moment
            raise self._locked_by(now or Driver())
        return mine.token

    def _locked_by(self, other: Driver) -> StudyLocked:
        return StudyLocked(
            f"{self.url}: another driver is at work on this study ({other}). One driver works on a study in an object "
            f"store. If that one is gone, or is to stop, give the same command with {TAKE_OVER}"
        )

    def require(self, token: str | None) -> None:
        """Raise :class:`DriverReplaced` unless the marker names the driver that has ``token``."""
        found = self.read()
        if token is not None and found is not None and found.token == token:
            return
        who = f"another driver ({found}) has taken it over" if found else f"its marker {MARKER} has been removed"
        raise DriverReplaced(
            f"{self.url}: this process no longer drives the study: {who}. It stops here and sends nothing more; what it "
            "has sent is kept, and whoever drives the study goes on from there"
        )

    def release(self, token: str | None) -> None:
        """Remove the marker of ``token``. One that cannot be removed is one that the next driver is told of."""
        with suppress(OSError, DriverReplaced):
            self.require(token)
            self.store.remove(self.path)
