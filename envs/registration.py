"""Registers the Gymnasium ids; importing it is what `gymnasium.make("module:id")` does.

Not done in the package's ``__init__``, which the plug-in passes through without Gymnasium.
"""

from __future__ import annotations

import gymnasium

SCHEDULE_ID = "pacesetter/Schedule-v0"

if SCHEDULE_ID not in gymnasium.registry:
    gymnasium.register(id=SCHEDULE_ID, entry_point="pacesetter.envs.gym_env:ScheduleEnv")
