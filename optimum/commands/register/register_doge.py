"""What `optimum-cli` finds of doge-export: `optimum-cli export doge`, and `doge` among the models that
optimum's TasksManager knows.

optimum imports every file of this namespace package, which therefore has no __init__.py anywhere. A failure
here would take all of `optimum-cli` with it.
"""

import logging

from optimum.commands.export.base import ExportCommand

from doge_export.cli.optimum import DogeExportCommand
from doge_export.core.errors import DogeExportError

REGISTER_COMMANDS = [(DogeExportCommand, ExportCommand)]

try:
    import doge_export.optimum_tasks  # noqa: F401 - registers
except DogeExportError as error:  # the command works without
    logging.getLogger("doge_export").warning("%s", error)
