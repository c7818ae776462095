"""Several jobs at a time on this machine, each in a process and a place of its own."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from resnet import UserError, cli
from resnet.sweep.job import Job
from resnet.sweep.places import Place, Places

POLL_S, ELSEWHERE_S = 0.03, 1.0  # of jobs here; of jobs on other hosts, whose files are read over a network
KILL_S = 15.0  # for a job that was asked to end at once


class Process(Protocol):
    """What a job runs in."""

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""

    def send(self, number: int) -> None:
        """Send a signal: SIGTERM to have it save and end, SIGINT then to have it end at once, SIGKILL to end it."""


class Events(Protocol):
    """What the pool tells a sweep."""

    def more(self) -> Job | None:
        """The next job of a search; None if there is none, or none now."""

    def start(self, job: Job, place: Place) -> Process | None:
        """Start the job; None if it needs no process, and then `job.code` is set."""

    def progress(self, job: Job) -> bool:
        """Called for each running job now and then; whether it is to be pruned."""

    def finish(self, job: Job) -> None:
        """The job has its exit status."""

    def show(self, running: Sequence[Job]) -> None:
        """Show how it goes."""


@dataclass
class Running:
    job: Job
    place: Place
    process: Process
    signals: set[int] = field(default_factory=set)  # that it was sent


class Pool:
    """Runs jobs until there are no more, or a signal ends the sweep."""

    def __init__(self, places: Places, events: Events) -> None:
        self.places, self.events = places, events
        self.running: list[Running] = []
        self.waiting: list[Job] = []
        self.deadline = float("inf")  # of jobs that were asked to end at once

    def run(self, jobs: Sequence[Job]) -> None:
        """Run `jobs`, and those of Events.more().

        The first signal has every running job save and end, and then raises KeyboardInterrupt, or SystemExit with 128 and its
        number. A second Ctrl-C kills them. However this ends, no process is left.
        """
        self.waiting = list(jobs)
        with cli.SignalRelay() as relay:
            try:
                while True:
                    if not relay.received:
                        self.fill()
                    if not self.running:
                        break
                    self.poll()
                    for one in reversed(
                        self.running if relay.received else []
                    ):  # the last ones may wait in Slurm's queue
                        self.signal(one, signal.SIGTERM)
                    if relay.at_once and self.end_at_once():
                        break
                    self.events.show([one.job for one in self.running])
                    time.sleep(max(POLL_S, ELSEWHERE_S) if self.places.elsewhere else POLL_S)
            finally:
                self.end(at_once=relay.at_once)
        if relay.received:
            raise KeyboardInterrupt if signal.SIGINT in relay.received else SystemExit(128 + relay.received[0])

    def fill(self) -> None:
        """Start every job that has a place now; the small ones pass those that do not fit yet."""
        while True:
            if not self.waiting and self.places.running < self.places.jobs and (job := self.events.more()):
                self.waiting.append(job)
            for job in self.waiting:
                if place := self.places.take(job.run):
                    break
            else:
                return
            self.waiting.remove(job)
            process = None
            try:
                process = self.events.start(job, place)
            finally:
                if process is None:
                    self.places.give_back(place)
            if process:
                self.running.append(Running(job, place, process))
            else:
                self.events.finish(job)

    def poll(self) -> None:
        """See which jobs have ended, and which are to be pruned."""
        for one in list(self.running):
            self.poll_job(one)

    def poll_job(self, one: Running) -> None:
        code = one.process.poll()
        if code is not None:
            one.job.code = code
            self.running.remove(one)
            self.places.give_back(one.place)
        prune = self.events.progress(one.job)  # of a job that has ended too: its last evaluations count
        if code is not None:
            self.events.finish(one.job)
        elif prune:
            self.signal(one, signal.SIGTERM)

    def signal(self, one: Running, number: int) -> None:
        """Send a signal to the job's own process, once; it passes it on to its ranks."""
        if number not in one.signals:
            one.signals.add(number)
            one.process.send(number)

    def end_at_once(self) -> bool:
        """Have the jobs end without saving; whether they have had the time."""
        for one in self.running:
            self.signal(one, signal.SIGINT)
        self.deadline = min(self.deadline, time.monotonic() + KILL_S)
        return time.monotonic() > self.deadline

    def end(self, *, at_once: bool) -> None:
        """End what still runs here, if the sweep has failed. Jobs save, unless `at_once`; ranks end with their job's process."""
        if self.places.elsewhere and not at_once:
            return  # jobs of Slurm do not need the sweep
        for number in (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL):
            for one in self.running:
                self.signal(one, number)
            deadline = time.monotonic() + KILL_S
            while self.running and time.monotonic() < deadline:
                for one in list(self.running):
                    with contextlib.suppress(UserError, OSError):  # the first error is the one that is reported
                        self.poll_job(one)
                time.sleep(POLL_S if self.running else 0)
