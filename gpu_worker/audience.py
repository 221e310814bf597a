"""Who waits for the requests that the worker holds. Pure."""

from collections.abc import Iterator, Mapping

from shared.parts import Peer, Route


class Audience:
    """The lives behind each request; when one of them is over, nobody waits for it."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}

    def join(self, request_id: str, route: Route) -> None:
        """Notes where the request's answer goes."""
        self._routes[request_id] = route

    def detokenizer_of(self, request_id: str) -> int:
        """Which detokenizer the text of a request that is held goes through."""
        return self._routes[request_id].detokenizer_id

    def frontend_of(self, request_id: str) -> int:
        """Which frontend the caller of a request that is held waits at."""
        return self._routes[request_id].frontend_id

    def leave(self, request_id: str) -> None:
        """Forgets a request that has ended."""
        self._routes.pop(request_id, None)

    def gone(self, peers: Mapping[str, Peer]) -> list[str]:
        """The requests that nobody waits for any more."""
        return [
            name
            for name, route in self._routes.items()
            if any(_epoch(room, peers) != epoch for room, epoch in _epochs(route))
        ]


def is_over(route: Route, peers: Mapping[str, Peer]) -> bool:
    """True when a room of the route is known to have begun another life.

    The newest address book may still be on its way, so a life that is not in it may be to come.
    """
    return any(_epoch(room, peers) > epoch for room, epoch in _epochs(route))


def _epochs(route: Route) -> Iterator[tuple[str, int]]:
    yield f"frontend-{route.frontend_id}", route.frontend_epoch
    if route.detokenizer_epoch is not None:
        yield f"detokenizer-{route.detokenizer_id}", route.detokenizer_epoch


def _epoch(room: str, peers: Mapping[str, Peer]) -> int:
    """Which life of the room the address book knows; 0: none."""
    return peers[room].epoch if room in peers else 0
