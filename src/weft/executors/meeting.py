"""Runs that meet at the executor: each goes on alone until all that still go wait for their clients' turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

from weft.core.method import Method
from weft.core.net import Net
from weft.core.task import Examples, Reply, Turn
from weft.core.turn import Execute, Mine


class Request(NamedTuple):
    """What a run asks of an executor."""

    method: Method
    net: Net
    down: Any
    mine: Mine
    examples: Examples
    turn: Turn
    public: Any


class Ended(NamedTuple):
    """The end of a run."""

    result: Any = None
    error: BaseException | None = None


Answer = Reply[Any, Mine] | Exception
"""An exception is raised in the run."""


Clock = Callable[[], float]
"""Seconds since some moment."""


def meet(
    runs: Sequence[Callable[[Execute, Clock], Any]], execute: Callable[[Mapping[int, Request]], Mapping[int, Answer]]
) -> list[Ended]:
    """Go through all runs, with the turns of all that wait handed over in one call.

    Runs have threads of their own, so that they need not know of each other, but only one of them goes on at a time,
    in their order: what they do is as deterministic as one run after the other, and safe where that is. A run that has
    ended or failed is no longer waited for. When the caller is interrupted, runs end at their next request.

    Args:
        runs: each takes the executor that it is to use, and a clock that counts what it does itself and its share of
            the joint calls, so that the times of all add up.
        execute: place of a run -> its request, to its answer; called by the thread that has called `meet`.

    Returns:
        list[Ended]: of each run, its result or the exception that ended it.
    """
    seats = [_Seat(run) for run in runs]
    ends: dict[int, Ended] = {}
    waiting: Mapping[int, Answer | None] = dict.fromkeys(range(len(seats)))
    try:
        while waiting:
            said = {i: seats[i].go_on(answer) for i, answer in waiting.items()}
            ends |= {i: word for i, word in said.items() if isinstance(word, Ended)}
            requests = {i: word for i, word in said.items() if isinstance(word, Request)}
            began = time.perf_counter()
            waiting = execute(requests) if requests else {}
            for i in requests:
                seats[i].spent += (time.perf_counter() - began) / len(requests)
    finally:
        for seat in seats:
            seat.leave()
    return [ends[i] for i in range(len(seats))]


class _Left(BaseException):
    """Raised in a run that nobody waits for any more."""


class _Seat:
    """A run in a thread that goes on when it is told to, up to its next request."""

    def __init__(self, run: Callable[[Execute, Clock], Any]) -> None:
        self._run = run
        self.spent, self._since = 0.0, 0.0  # seconds before it went on the last time, and that moment
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._words: SimpleQueue[Request | Ended] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="weft-run", daemon=True)
        self._thread.start()

    def go_on(self, answer: Answer | None) -> Request | Ended:
        """What the run says next, after this answer to what it said last."""
        self._since = time.perf_counter()
        self._answers.put(answer)
        word = self._words.get()
        self.spent = self._clock()
        if isinstance(word, Ended) and word.error is not None and not isinstance(word.error, Exception):
            raise word.error  # an interruption is for all
        return word

    def leave(self) -> None:
        """End the run at its next request, and wait for that."""
        self._answers.put(_Left())
        self._thread.join()

    def _work(self) -> None:
        try:
            self._wait()
            self._words.put(Ended(self._run(self._execute, self._clock)))
        except BaseException as error:  # whatever ends a run is told, so that nobody waits for it in vain
            self._words.put(Ended(error=error))

    def _clock(self) -> float:
        return self.spent + time.perf_counter() - self._since

    def _execute(self, *request: Any) -> Reply[Any, Mine]:
        self._words.put(Request(*request))
        reply: Reply[Any, Mine] = self._wait()
        return reply

    def _wait(self) -> Any:
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer
