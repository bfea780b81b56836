"""Reports as people read them: lines, and a page."""

from doge_export.render.certificate import certificate
from doge_export.render.lines import bench_lines, report_lines

__all__ = ["bench_lines", "certificate", "report_lines"]
