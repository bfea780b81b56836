"""Reports as people read them: lines, pictures, and a page."""

from doge_export.render.certificate import certificate, certificate_dict, certificate_faults
from doge_export.render.lines import bench_lines, report_lines

__all__ = ["bench_lines", "certificate", "certificate_dict", "certificate_faults", "report_lines"]
