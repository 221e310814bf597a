"""The port: taken at once, refused with the flag to change, and known to be open or not."""

import socket

import pytest

from shared.errors import EXIT_CONFIGURATION, EXIT_PORT_IN_USE, FatalError
from shared.launching.listener import is_open_to_others, is_own_address, open_listener


def test_a_port_in_use_and_a_host_that_is_none_differ_in_status() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FatalError) as in_use:
            open_listener("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(FatalError) as no_host:
        open_listener("256.1.1.1", 0)
    assert (in_use.value.exit_status, no_host.value.exit_status) == (
        EXIT_PORT_IN_USE,
        EXIT_CONFIGURATION,
    )


@pytest.mark.parametrize(
    ("host", "is_open"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)]
)
def test_only_the_loopback_is_closed_to_other_machines(host: str, is_open: bool) -> None:
    with open_listener(host, 0) as listener:
        assert is_open_to_others(listener) is is_open


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "0.0.0.0"])
def test_an_address_of_this_machine_is_its_own(host: str) -> None:
    assert is_own_address(host)


@pytest.mark.parametrize("host", ["", "3f2a9c", "192.0.2.7", "256.1.1.1", "2001:db8::7"])
def test_a_name_and_an_address_of_another_machine_are_not(host: str) -> None:
    assert not is_own_address(host)
