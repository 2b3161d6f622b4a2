"""Planners that need no training: baselines that rank units by their weights alone."""

from inarch.structure.planners.families import Progress
from inarch.structure.planners.make import METHODS, OptionError, PlanResult, UnreachableError, make_plan

__all__ = ["METHODS", "OptionError", "PlanResult", "Progress", "UnreachableError", "make_plan"]
