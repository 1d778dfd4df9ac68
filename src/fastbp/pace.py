"""How many threads the steps of a fit run on: a whole team or one, whichever is faster at the moment."""
from __future__ import annotations

import math
import time
from collections.abc import Callable


class Pace:
    """Chooses the number of threads turn by turn: `turn` says how many and for how long, `ran` hears how many steps that gave.

    Whether a team is faster cannot be computed: another process may want the second core, two "cores" may be one, the steps may be too short.
    It can only be measured, and measuring is training all the same, since results do not depend on the number of threads. So the other
    choice is tried now and then, ever more seldom down to once in LONGEST_REST seconds and for at most 1/RARITY of the time; and at once when the
    present one has become slower than the other was.
    """

    TRIAL, WAKING = 0.0025, 0.04          # seconds: of a trial; before it, until a second core is really there: a virtual one takes tens of ms
    FIRST_REST, LONGEST_REST = 0.05, 1.0  # seconds between trials
    RARITY = 40
    FIRST_STEPS = 8                       # before the first trial
    WINDOW = 0.1                          # seconds over which the present choice's rate is averaged
    MARGIN = 1.05                         # faster than this counts as faster

    def __init__(self, first: int, second: int, clock: Callable[[], float] = time.monotonic):
        """Two numbers of threads to choose from; begins with the `first`. Where they are equal nothing is ever tried."""
        self.chosen, self.other = first, second
        self._clock = clock
        self._rate = {first: 0.0, second: 0.0}  # steps a second, 0: not known
        self._rest = self.FIRST_REST
        self._due = math.inf                # time of the next trial
        self._trial: list[float] = []       # its turns still to come
        self._new = True                    # nothing but a trial is known of the present choice

    @property
    def rate(self) -> float:
        """Steps a second of late, 0 when none are known."""
        return self._rate[self.chosen]

    def turn(self, seconds: float) -> tuple[int, float]:
        """(threads, seconds) of the next turn, which lasts at most this long."""
        self._begin = self._clock()
        if self.chosen != self.other and not self._trial and self._worth_a_trial():
            wakes = self.other > 1 and self._rate[self.chosen] * self.WAKING > 1
            self._trial = [self.WAKING, self.TRIAL] if wakes else [self.TRIAL]
            self._trial_begin = self._begin
        if self._trial:
            return self.other, min(seconds, self._trial[0])
        return self.chosen, seconds

    def _worth_a_trial(self) -> bool:
        return self._begin >= self._due or self._rate[self.chosen] * self.MARGIN < self._rate[self.other]

    def ran(self, steps: int) -> None:
        """The turn is over and made this many steps, at least one."""
        end = self._clock()
        duration = max(end - self._begin, 1e-9)
        rate = steps / duration
        if not self._trial:
            weight = 1.0 if self._new else min(1.0, duration / self.WINDOW)
            self._rate[self.chosen] += weight * (rate - self._rate[self.chosen])
            self._new = False
            if self._due == math.inf:
                self._due = end + max(self._rest, self.FIRST_STEPS / rate)
            return
        self._trial[0] -= duration
        if len(self._trial) > 1 and self._trial[0] > 0:
            return
        del self._trial[0]
        if self._trial:
            return
        self._rate[self.other] = rate
        if rate > self._rate[self.chosen] * self.MARGIN:
            self.chosen, self.other, self._new = self.other, self.chosen, True
        self._rest = min(2 * self._rest, self.LONGEST_REST)
        self._due = end + max(self._rest, self.RARITY * (end - self._trial_begin))
