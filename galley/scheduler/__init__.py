"""Who runs and how many tokens: queues, policies, the step's plan and what its result means."""

from galley.scheduler.commit import CommittedStep
from galley.scheduler.limits import SchedulerLimits
from galley.scheduler.queue import WaitReason
from galley.scheduler.scheduler import Scheduler
from galley.scheduler.sequence import Sequence, SequenceEnd, SequenceStart

__all__ = [
    "CommittedStep",
    "Scheduler",
    "SchedulerLimits",
    "Sequence",
    "SequenceEnd",
    "SequenceStart",
    "WaitReason",
]
