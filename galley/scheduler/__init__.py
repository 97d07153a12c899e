"""Decides which sequences run in a step and with how many tokens, and commits the results."""

from galley.scheduler.commit import CommittedStep
from galley.scheduler.limits import SchedulerLimits
from galley.scheduler.scheduler import Scheduler
from galley.scheduler.sequence import Sequence, SequenceEnd, SequenceStart

__all__ = [
    "CommittedStep",
    "Scheduler",
    "SchedulerLimits",
    "Sequence",
    "SequenceEnd",
    "SequenceStart",
]
