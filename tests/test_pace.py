"""The choice between a team and one thread, on an imaginary machine whose clock advances by what is run on it; and how large a team is."""
import math
import random

import numpy as np
import pytest

import fastbp as fb
from fastbp.pace import Pace

SLICE = 0.025


class Machine:
    """Seconds of a step on one thread and on a team, as functions of time; a team that has not run lately must be woken up"""

    def __init__(self, alone, team, noise=0.0, waking=0.0002):
        self.now, self.seconds = 0.0, {1: alone, 2: team}
        self.noise, self.waking, self.random, self.last = noise, waking, random.Random(0), 1

    def clock(self):
        return self.now

    def run(self, threads, seconds):
        """whole steps, at least one; how many"""
        if threads == 2 and self.last == 1:
            self.now += self.waking
        self.last = threads
        step = self.seconds[threads](self.now) * (1 + self.noise * self.random.expovariate(1))
        steps = max(1, math.ceil(seconds / step))
        self.now += steps * step
        return steps


def train(machine, until, pace=None, fit=1e9):
    """steps made, in fits of so many seconds; the pace is kept from fit to fit"""
    pace, steps = pace or Pace(2, 1, machine.clock), 0
    while machine.now < until:
        end = min(machine.now + fit, until)
        while machine.now < end:
            done = machine.run(*pace.turn(SLICE))
            pace.ran(done)
            steps += done
    return steps


def constant(seconds):
    return lambda now: seconds


def most_steps(alone, team, until, noise):
    return max(train_only(threads, alone, team, until, noise) for threads in (1, 2))


def train_only(threads, alone, team, until, noise):
    machine, steps = Machine(alone, team, noise), 0
    while machine.now < until:
        steps += machine.run(threads, SLICE)
    return steps


@pytest.mark.parametrize("fit", [0.019, 0.06, 1e9], ids=lambda fit: f"fits of {fit:g} s")
@pytest.mark.parametrize("noise, share", [(0.0, 0.97), (0.1, 0.97), (0.3, 0.85)])
@pytest.mark.parametrize("first", [1, 2], ids=lambda threads: f"begins with {threads}")
@pytest.mark.parametrize("speedup", [0.3, 0.75, 0.93, 1.0, 1.2, 1.95])
@pytest.mark.parametrize("step", [2e-6, 3e-4, 4e-3, 1e-2, 0.1])
def test_choosing_costs_at_most_three_percent(step, speedup, first, noise, share, fit):
    """of the better choice, over ten seconds and from fit to fit, beside what the steps before the first trial cost"""
    alone, team = constant(step), constant(step / speedup)
    machine = Machine(alone, team, noise)
    steps = train(machine, 10.0, Pace(first, 3 - first, machine.clock), fit)
    if abs(speedup - 1) < 0.1:
        share -= 0.05  # so little is not worth a change
    beginning = Pace.FIRST_STEPS * max(speedup, 1 / speedup)
    ends = 0 if fit == 1e9 else 10.0 / fit  # a fit ends anywhere in a turn
    assert steps >= share * most_steps(alone, team, 10.0, noise) - beginning - ends


@pytest.mark.parametrize("step", [2e-5, 3e-4, 1e-2])
def test_a_core_that_comes_and_goes(step):
    """A second core that is there for three of every six seconds: at least four fifths of what the better choice would give at each moment"""
    there = lambda now: now % 6 < 3  # noqa: E731
    alone, team = constant(step), lambda now: step / (1.8 if there(now) else 0.6)
    machine = Machine(alone, team, 0.1)
    best, at = 0, Machine(alone, team, 0.1)
    while at.now < 60:
        best += at.run(2 if there(at.now) else 1, SLICE)
    assert train(machine, 60.0) >= 0.8 * best


def test_a_team_that_loses_its_core_is_left_within_a_fifth_of_a_second():
    team = lambda now: 1e-3 / (1.9 if now < 5 else 0.4)  # noqa: E731
    machine = Machine(constant(1e-3), team)
    pace = Pace(2, 1, machine.clock)
    train(machine, 5.0, pace)
    assert pace.chosen == 2
    train(machine, 5.2, pace)
    assert pace.chosen == 1


def test_a_core_that_appears_is_found_within_the_longest_rest():
    team = lambda now: 1e-3 / (0.5 if now < 20 else 1.9)  # noqa: E731
    machine = Machine(constant(1e-3), team)
    pace = Pace(1, 2, machine.clock)
    train(machine, 20.0, pace)
    assert pace.chosen == 1
    train(machine, 20.2 + Pace.LONGEST_REST, pace)
    assert pace.chosen == 2


def test_no_choice_is_never_tried():
    machine = Machine(constant(1e-3), constant(1e-9))
    pace = Pace(1, 1, machine.clock)
    for _ in range(1000):
        assert pace.turn(SLICE) == (1, SLICE)
        pace.ran(machine.run(1, SLICE))


def test_a_trial_is_as_short_as_the_caller_wants():
    machine = Machine(constant(1e-6), constant(1e-6))
    pace = Pace(1, 2, machine.clock)
    for _ in range(10_000):
        assert pace.turn(1e-4)[1] <= 1e-4
        pace.ran(machine.run(1, 1e-4))


def test_a_team_grows_with_the_work_of_a_step():
    """One thread for the smallest steps, two from a few microseconds on, as many as are allowed for large ones"""
    teams = []
    for width, batch in ((4, 16), (64, 32), (300, 64), (800, 128)):
        model = fb.Sequential(fb.Linear(width, 32), fb.ReLU(), fb.Linear(32, 10), seed=0)
        with fb.num_threads(6):
            model.fit(np.zeros((batch, width)), np.zeros(batch, int), loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(0.1), batch_size=batch)
        teams.append(max(model.workspace._choices))
    assert teams == sorted(teams)
    assert (teams[0], teams[1], teams[-1]) == (1, 2, 6)
