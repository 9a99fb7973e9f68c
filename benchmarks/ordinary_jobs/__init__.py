"""Thirty ordinary training jobs, two of each kind: plain PyTorch, nothing of the generated world.

`base` has what a job is; `noisy`, `labelled` and `structured` have the jobs. One job of each kind
is in the split ``choose``, by which policies may be chosen; the other is in ``report``.
"""

from ordinary_jobs import labelled, noisy, structured
from ordinary_jobs.base import JOBS, Job, Setup, version

__all__ = ["JOBS", "Job", "Setup", "labelled", "noisy", "structured", "version"]
