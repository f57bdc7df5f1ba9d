"""Which requests do not move, from looks that are made up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autopsy.watch.coroutine_look import CoroutineLook, ParkedCoroutine
from autopsy.watch.request_shape import Shape
from autopsy.watch.tokens import MOST_LAG_NS, SECOND, RequestsInFlight, RequestTokens

DISPATCHER = ParkedCoroutine(1, b"d", Shape.OTHER)


def request(top: int, digest: bytes = b"r", shape: Shape = Shape.TRACKED, kin: int = 7) -> ParkedCoroutine:
    return ParkedCoroutine(top, digest, shape, kin)


def at_a_limit(top: int, seconds: float) -> ParkedCoroutine:
    """Return a request that waits at a limit which lets it go in so many seconds."""
    return ParkedCoroutine(top, b"r", Shape.QUEUED, 1, int(seconds * SECOND))


def looks(*parked: tuple[ParkedCoroutine, ...], every: int = SECOND) -> RequestsInFlight:
    """Take one look after the other, and return what the last one adds up to."""
    tokens = RequestTokens()
    found = RequestsInFlight()
    for number, one in enumerate(parked):
        found = tokens.update(CoroutineLook(clear=True, parked=(DISPATCHER, *one)), (number + 100) * every)
    return found


def test_a_request_that_is_there_at_each_look_stands() -> None:
    found = looks((), *[(request(2),)] * 9)
    assert found.unmoved == (9 * SECOND,)
    assert (found.in_flight, found.moved) == (1, 0)


def test_another_request_on_the_same_stack_is_another_one() -> None:
    found = looks(*[(request(2, bytes([number])),) for number in range(9)])
    assert found.unmoved == ()
    assert found.moved == 1


def test_what_holds_no_request_may_stand_for_ever() -> None:
    assert looks(*[(request(2, shape=Shape.OTHER),)] * 9) == RequestsInFlight()


def test_a_queue_that_moves_is_slow_not_stuck() -> None:
    queue = [request(top) for top in range(2, 40)]
    found = looks(*[tuple(queue[number:]) for number in range(20)])
    assert max(found.unmoved) <= SECOND


def test_a_queue_that_has_ceased_to_move_stands_since_then_and_may_since_the_look_before() -> None:
    queue = [request(top) for top in range(2, 40)]
    found = looks(*[tuple(queue[number:]) for number in range(5)], *[tuple(queue[4:])] * 10)
    assert found.unmoved[0] == 10 * SECOND
    assert found.earliest == found.before - SECOND


def test_what_was_seen_but_once_excuses_nobody_that_came_with_it_from_having_stood_before() -> None:
    """A read that another disk let through while the writes of this one had ceased to move."""
    new = [request(top, shape=Shape.UNKNOWN) for top in (2, 3)]
    found = looks((), tuple(new), *[(request(3),)] * 3, every=2 * SECOND)
    assert found.unmoved == (4 * SECOND,)
    assert found.earliest == found.before - 4 * SECOND


def test_what_the_first_look_shows_may_have_stood_before_but_is_not_said_to() -> None:
    found = looks(*[(request(2),)] * 4, every=2 * SECOND)
    assert found.unmoved == (6 * SECOND,)
    assert found.earliest == found.before - MOST_LAG_NS


def test_a_limit_that_has_set_a_time_within_a_guests_patience_is_slow_not_stuck() -> None:
    assert looks((), *[(at_a_limit(2, 20 - number),) for number in range(20)]).unmoved == ()


def test_a_limit_that_lets_nothing_through_before_a_guest_gives_up_is_stuck() -> None:
    assert looks((), *[(at_a_limit(2, 40 - number),) for number in range(9)]).unmoved == (9 * SECOND,)


def test_a_limits_time_that_has_passed_excuses_nobody() -> None:
    assert looks((), *[(at_a_limit(2, 4 - number),) for number in range(9)]).unmoved == (9 * SECOND,)


def test_a_request_that_younger_ones_overtake_stands() -> None:
    young = [(request(2), *(request(top) for top in range(number * 3 + 10, number * 3 + 13))) for number in range(15)]
    found = looks((request(2),), *young)
    assert found.unmoved[0] == 15 * SECOND
    assert found.moved == 3


def test_a_stuck_disk_is_not_excused_by_another_that_flows() -> None:
    flowing = [(request(2, kin=1), request(3 + number, kin=2)) for number in range(15)]
    assert looks(*flowing).unmoved[0] >= 13 * SECOND


def test_a_request_is_no_older_than_the_look_before_it() -> None:
    found = looks((), (request(2),), (request(2),), every=5 * SECOND)
    assert 5 * SECOND <= found.unmoved[0] <= 8 * SECOND


def test_a_monitor_that_is_asked_is_no_request_that_moves() -> None:
    asked = [ParkedCoroutine(1, bytes([number]), Shape.UNKNOWN) for number in range(9)]
    tokens = RequestTokens()
    tokens.update(CoroutineLook(clear=True, parked=(DISPATCHER, request(2))), 99 * SECOND)
    for number, dispatcher in enumerate(asked):
        found = tokens.update(CoroutineLook(clear=True, parked=(dispatcher, request(2))), (100 + number) * SECOND)
    assert (found.in_flight, found.moved) == (1, 0)


@given(st.lists(st.sets(st.integers(2, 12), max_size=8), min_size=2, max_size=30))
def test_nothing_stands_longer_than_it_was_seen(rounds: list[set[int]]) -> None:
    found = looks(*[tuple(map(request, tops)) for tops in rounds])
    for age in found.unmoved:
        number = age // SECOND
        assert any(top in rounds[-1] for top in set.intersection(*rounds[-number:])) if number > 1 else True
    assert found.in_flight == len(rounds[-1])
