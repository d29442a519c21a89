import sys
from pathlib import Path

from command import check_links, run_command

# Before a module is imported that is such a link.
if code := run_command(check_links, Path(__file__).parent):
    sys.exit(code)
