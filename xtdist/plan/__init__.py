"""What a run will need, before anything is started: parameters, memory, arithmetic, time, disk."""

from xtdist.plan.devices import Device, known_device
from xtdist.plan.make import Data, RunPlan, make_plan
from xtdist.plan.parameters import Parameters, count_parameters
from xtdist.train.footprint import Memory

__all__ = [
    "Data",
    "Device",
    "Memory",
    "Parameters",
    "RunPlan",
    "count_parameters",
    "known_device",
    "make_plan",
]
