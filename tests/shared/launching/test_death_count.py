"""How many deaths are mended."""

from shared.launching.death_count import RESTART_WINDOW_SECONDS, DeathCount


def test_deaths_are_mended_up_to_the_limit() -> None:
    deaths = DeathCount(limit=3)
    assert [deaths.allows_restart(now=float(second)) for second in range(4)] == [True] * 3 + [False]


def test_without_a_limit_the_first_death_is_the_last() -> None:
    assert not DeathCount(limit=0).allows_restart(now=0.0)


def test_deaths_of_long_ago_do_not_count() -> None:
    deaths = DeathCount(limit=1)
    assert deaths.allows_restart(now=0.0)
    assert deaths.allows_restart(now=RESTART_WINDOW_SECONDS + 1)
    assert not deaths.allows_restart(now=RESTART_WINDOW_SECONDS + 2)
