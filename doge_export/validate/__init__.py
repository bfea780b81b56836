"""The reference against an exported bundle, on the same schedules of calls -> a report."""

from doge_export.validate.compare import validate
from doge_export.validate.engine import validate_engine
from doge_export.validate.report import Check, Report

__all__ = ["Check", "Report", "validate", "validate_engine"]
