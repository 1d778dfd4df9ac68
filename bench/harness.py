"""Taking turns: the machine drifts by a factor of two within minutes, so rivals are compared round by round.

A round is one turn of every seat, in the same order each time: A B C A B C … What is reported of a contestant is the
minimum of its turns; of two contestants, the median over the rounds of the ratio of their turns.
"""

import sys
import time
from dataclasses import dataclass

import numpy as np

from .seat import Seat

PROBE_SECONDS = 0.002
SETTLE_SECONDS = 0.05  # after a turn on several threads, until those that wait have stopped spinning (OpenBLAS: 2^26 ticks)


def take_seats(peers, thread_counts):
    """Every importable peer on every number of threads, fastbp first; the missing are named on stderr."""
    seats = []
    for peer in peers:
        try:
            seats += [Seat(peer, threads) for threads in thread_counts]
        except ImportError as error:
            print(f"without {peer}: {error}", file=sys.stderr)
    return seats


@dataclass
class Race:
    """Seconds per unit of work, (rounds,) per (peer, threads), and the limit probed around each of those turns."""

    times: dict
    limits: dict

    def minimum(self, seat):
        return float(np.min(self.times[seat]))

    def ratio(self, rival, seat):
        """How many times longer the rival takes."""
        return float(np.median(self.times[rival] / self.times[seat]))

    def rivals(self, peer, threads):
        """{rival: its better seat} among those with no more threads: a rival runs on as many as suit it."""
        seats = [seat for seat in self.times if seat[0] != peer and seat[1] <= threads]
        return {rival: min((seat for seat in seats if seat[0] == rival), key=self.minimum) for rival, _ in seats}

    def share(self, seat, work):
        """Median over the turns of rate / limit, for `work` per unit; None where nothing was probed."""
        if self.limits[seat] is None:
            return None
        return float(np.median(work / self.times[seat] / self.limits[seat]))


def race(seats, rounds, turn_seconds, probe=None, dtype="float32"):
    """Let the seats, whose workloads are built, take turns.

    turn_seconds: length of a turn; a unit of work that takes longer makes a longer turn of one unit.
    probe: name of a function in probes.py that measures the limit, for that dtype, that shares refer to. It runs
        directly before and after each turn, in fastbp's process of as many threads.
    """
    counts = {_key(seat): _calibrate(seat, turn_seconds) for seat in seats}
    probers = {seat.threads: seat for seat in seats if seat.peer == "fastbp"} if probe else {}
    times = {key: [] for key in counts}
    limits = {key: [] for key in counts}
    for _ in range(rounds):
        for seat in seats:
            key, prober = _key(seat), probers.get(seat.threads)
            before = _limit(prober, probe, dtype)
            times[key].append(seat.ask("run", counts[key]) / counts[key])
            limits[key].append((before + _limit(prober, probe, dtype)) / 2)
            if seat.threads > 1:
                time.sleep(SETTLE_SECONDS)
    return Race({key: np.array(values) for key, values in times.items()},
                {key: None if np.isnan(values).any() else np.array(values) for key, values in limits.items()})


def _key(seat):
    return seat.peer, seat.threads


def _calibrate(seat, turn_seconds):
    """Units of work in a turn. The first unit warms up and is not counted: a slow one would make all turns short."""
    seat.ask("run", 1)
    count, seconds = 1, seat.ask("run", 1)
    while seconds < turn_seconds / 4:
        count = max(count + 1, min(10 * count, int(turn_seconds / 2 / seconds * count)))
        seconds = seat.ask("run", count)
    return max(1, int(0.9 * turn_seconds / seconds * count))


def _limit(prober, probe, dtype):
    """The probed limit of all threads; nan without a probe."""
    rate = prober.ask("probe", probe, PROBE_SECONDS, dtype) if prober else None
    return float("nan") if rate is None else rate
