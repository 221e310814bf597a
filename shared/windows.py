"""Models of sound: what they say to text, and how a sound's windows are called.

Each window is a request of its own to the rooms behind.
"""

HEARS_ONLY = "This model answers no text: send sound to /v1/audio/transcriptions."
_MARK = "#"


def window_name(request_id: str, number: int) -> str:
    """The name of a sound's window."""
    return f"{request_id}{_MARK}{number}"


def sound_of(name: str) -> tuple[str, int]:
    """The request that a name stands for, and its window; 0 of one that is no window."""
    request_id, mark, number = name.rpartition(_MARK)
    return (request_id, int(number)) if mark and number.isdigit() else (name, 0)
