"""Who waits for the requests that the worker holds. Pure."""

from collections.abc import Mapping

from shared.parts import Peer, Route


class Audience:
    """The lives behind each request; when one of them is over, nobody waits for it."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}

    def join(self, request_id: str, route: Route) -> None:
        """Notes where the request's text goes."""
        self._routes[request_id] = route

    def leave(self, request_id: str) -> None:
        """Forgets a request that has ended."""
        self._routes.pop(request_id, None)

    def gone(self, peers: Mapping[str, Peer]) -> list[str]:
        """The requests that nobody waits for any more."""
        return [name for name, route in self._routes.items() if not is_alive(route, peers)]


def is_alive(route: Route, peers: Mapping[str, Peer]) -> bool:
    """True while every life of the route is in the address book."""
    epochs = {
        f"frontend-{route.frontend_id}": route.frontend_epoch,
        "detokenizer-0": route.detokenizer_epoch,
    }
    return all(room in peers and peers[room].epoch == epoch for room, epoch in epochs.items())
