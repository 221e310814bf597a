"""How many random examples a property is tried with: a part of them in each run, or all."""

from hypothesis import settings

EVERY_EXAMPLE = "every example"  # the hypothesis profile of `make test-slow`
FAST_PART = 5  # one of so many is tried where a run must be fast
FEWEST = 20


def num_examples(whole: int) -> int:
    """All under that profile; else a fifth of them, but not fewer than 20."""
    if settings.get_current_profile_name() == EVERY_EXAMPLE:
        return whole
    return min(whole, max(FEWEST, whole // FAST_PART))


def examples(whole: int) -> settings:
    """Settings for so many examples, or for their part."""
    return settings(max_examples=num_examples(whole))
