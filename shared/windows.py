"""How a sound's windows are called where each is a request of its own."""

_MARK = "#"


def window_name(request_id: str, number: int) -> str:
    """The name of a sound's window."""
    return f"{request_id}{_MARK}{number}"


def sound_of(name: str) -> tuple[str, int]:
    """The request that a name stands for, and its window; 0 of one that is no window."""
    request_id, mark, number = name.rpartition(_MARK)
    return (request_id, int(number)) if mark and number.isdigit() else (name, 0)
