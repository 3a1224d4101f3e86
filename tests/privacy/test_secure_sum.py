"""Secure aggregation: the sum is right whoever vanishes, and nobody learns more than the sum."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="secure aggregation needs the package cryptography")

from weft.core.errors import SettingError
from weft.privacy import shamir
from weft.privacy.fixed_point import FixedPoint, Floats, OutOfRange
from weft.privacy.keys import mask
from weft.privacy.secure_client import Client
from weft.privacy.secure_messages import SURVIVOR, ProtocolError, written
from weft.privacy.secure_round import enough, secure_sum
from weft.privacy.secure_server import Server, TooFew

POINT = FixedPoint(10)


def vectors(clients: int, length: int = 5) -> dict[int, Floats]:
    rng = np.random.default_rng(clients)
    return {7 * k + 3: rng.uniform(-60, 60, length) for k in range(clients)}


def plain(values: Mapping[int, Floats]) -> Floats:
    """The sum in integers, as nobody masked it."""
    rounded = [np.rint(v * 2.0**POINT.places).astype(np.int64) for v in values.values()]
    return np.array([sum(map(int, column)) / 2**POINT.places for column in zip(*rounded, strict=True)])


@pytest.mark.parametrize("clients", [2, 3, 6])
def test_the_sum_is_that_of_the_rounded_numbers(clients: int) -> None:
    values = vectors(clients)
    found, alive, *_ = secure_sum(values, POINT, b"s")
    assert alive == sorted(values)
    assert np.array_equal(found, plain(values))
    coarse = FixedPoint(10, 2.0**30)
    found, *_ = secure_sum(values, coarse, b"s")
    assert 0 < np.abs(found - sum(values.values())).max() <= clients * 2.0 ** -(coarse.places + 1)


@pytest.mark.parametrize("first", range(5))
def test_every_way_to_vanish(first: int) -> None:
    """Four clients of which three are needed, each vanishing after any step."""
    values = vectors(4)
    for others in itertools.product(range(5), repeat=3):
        steps = dict(zip(values, (first, *others), strict=True))
        sent = {k: v for k, v in values.items() if steps[k] >= 3}
        if sum(s == 4 for s in steps.values()) < 3:
            with pytest.raises(TooFew, match="3 are needed"):
                secure_sum(values, POINT, b"s", 3, steps)
            continue
        found, alive, *_ = secure_sum(values, POINT, b"s", 3, steps)
        assert alive == sorted(sent)
        assert np.array_equal(found, plain(sent))


def test_threshold() -> None:
    assert [enough(n) for n in (2, 3, 4, 6, 9, 10, 100)] == [2, 3, 3, 5, 7, 7, 67]
    with pytest.raises(ProtocolError, match="more than half"):
        secure_sum(vectors(4), POINT, b"s", threshold=2)
    with pytest.raises(ProtocolError, match="needs two"):
        secure_sum(vectors(1), POINT, b"s")


def test_numbers_that_do_not_fit_are_refused() -> None:
    for wrong in (64.1, -65.0, np.nan, np.inf):
        with pytest.raises(OutOfRange, match="beyond the range 64"):
            POINT.encode(np.array([0.0, wrong]))
    edge = {k: np.array([64.0, -64.0]) for k in range(10)}
    assert np.array_equal(secure_sum(edge, POINT, b"s")[0], [640.0, -640.0])
    with pytest.raises(SettingError, match="secure_range = 64 and 100000 clients leave 8 binary places of 32 bits"):
        FixedPoint(100_000, bits=32)
    with pytest.raises(SettingError, match="secure_range = 0"):
        FixedPoint(10, 0.0)
    assert FixedPoint(1000, 8.0, 32).places == 18


def test_words_of_32_bits() -> None:
    point = FixedPoint(6, 8.0, 32)
    values = {k: v / 10 for k, v in vectors(6).items()}
    found, *_ = secure_sum(values, point, b"s")
    assert np.abs(found - sum(values.values())).max() <= 6 * 2.0 ** -(point.places + 1)


def test_shares_below_the_threshold_give_another_secret() -> None:
    secret = bytes(range(32))
    shares = {i + 1: s for i, s in enumerate(shamir.split(secret, 5, 3))}
    for holders in itertools.combinations(shares, 3):
        assert shamir.combine(shares, shamir.at_zero(holders)) == secret
    for holders in itertools.combinations(shares, 2):
        with pytest.raises(ValueError, match="one secret"):  # by chance right once in 2^265
            shamir.combine(shares, shamir.at_zero(holders))


class Talk:
    """Three clients and a server up to the third step, so that a test can misbehave."""

    def __init__(self, length: int = 4) -> None:
        self.clients = {k: Client(k, b"s", 2) for k in (1, 2, 3)}
        self.server = Server(b"s", 2, length, POINT)
        self.roster = self.server.roster({k: c.keys() for k, c in self.clients.items()})
        self.shares = {k: self.clients[k].shares(m) for k, m in self.roster.items()}
        self.envelopes = self.server.envelopes(self.shares)


def test_a_client_answers_each_step_once() -> None:
    talk = Talk()
    client = talk.clients[1]
    with pytest.raises(ProtocolError, match="step 2 after 2"):
        client.shares(talk.roster[1])
    client.masked(talk.envelopes[1], POINT.encode(np.zeros(4)))
    both = [written(SURVIVOR, [(1,), (2,)]), written(SURVIVOR, [(1,), (3,)])]
    client.reveal(both[0])
    with pytest.raises(ProtocolError, match="step 4 after 4"):  # or both shares of client 2 and 3 would be out
        client.reveal(both[1])


def test_a_client_refuses_what_would_unmask_it() -> None:
    talk = Talk()
    client = talk.clients[1]
    client.masked(talk.envelopes[1], POINT.encode(np.zeros(4)))
    with pytest.raises(ProtocolError, match="will not reveal shares for a sum of 1 clients"):
        client.reveal(written(SURVIVOR, [(1,)]))
    with pytest.raises(ProtocolError, match="needs two"):
        lonely = Client(1, b"s", 1)
        lonely.shares(lonely.keys())


def test_exchanged_or_altered_shares_are_noticed() -> None:
    talk = Talk()
    for k, c in talk.clients.items():
        altered = bytearray(talk.envelopes[k])
        altered[-1] ^= 1
        c.masked(bytes(altered), POINT.encode(np.zeros(4)))
        with pytest.raises(ProtocolError, match="was not encrypted by the client"):
            c.reveal(written(SURVIVOR, [(1,), (2,), (3,)]))


def test_the_server_refuses_what_does_not_belong() -> None:
    talk = Talk()
    answer = talk.clients[1].masked(talk.envelopes[1], POINT.encode(np.zeros(4)))
    talk.server.add(1, answer)
    for client, message in ((1, answer), (9, answer), (2, answer[:-1])):
        with pytest.raises(ProtocolError):
            talk.server.add(client, message)
    talk.server.add(2, talk.clients[2].masked(talk.envelopes[2], POINT.encode(np.zeros(4))))
    late = talk.clients[3].masked(talk.envelopes[3], POINT.encode(np.zeros(4)))
    talk.server.survivors()
    with pytest.raises(ProtocolError, match="too late"):
        talk.server.add(3, late)
    with pytest.raises(ProtocolError, match="not made of records"):
        talk.server.total({1: b"x", 2: b"y"})


def test_masked_values_look_random() -> None:
    """Chi-square of the bytes of what a client sends, whose values are all zero."""
    talk = Talk(length=4096)
    sent = np.frombuffer(talk.clients[1].masked(talk.envelopes[1], np.zeros(4096, POINT.kind)), np.uint8)
    expected = len(sent) / 256
    chi = float(((np.bincount(sent, minlength=256) - expected) ** 2 / expected).sum())
    assert 255 - 6 * 22.6 < chi < 255 + 6 * 22.6  # six standard deviations of chi-square with 255 degrees
    assert not np.array_equal(mask(bytes(32), 4, POINT.kind), mask(b"1" * 32, 4, POINT.kind))


def test_keys_differ_between_sessions_and_purposes() -> None:
    from weft.privacy.keys import Pair
    from weft.privacy.secure_messages import pairwise

    a, b = Pair(), Pair()
    one = a.agree(b.public, pairwise(b"s", 1, 2, b"mask"))
    assert one == b.agree(a.public, pairwise(b"s", 2, 1, b"mask"))
    for other in (pairwise(b"t", 1, 2, b"mask"), pairwise(b"s", 1, 2, b"seal"), pairwise(b"s", 1, 3, b"mask")):
        assert one != a.agree(b.public, other)
    assert struct.calcsize("<q") == 8
