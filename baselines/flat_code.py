"""Saving code that imports `modeling`: a saved folder is flat, and the package is not beside it.

`save_pretrained` copies a class's own file and what that file imports with one dot. The baselines import from another
package of this repository as well; in the saved copies those imports are given one dot, and their files put beside.
"""

import re
import shutil
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

IMPORT = re.compile(r"^from modeling\.(\w+) import", re.MULTILINE)


def flatten_code(folder: str | Path) -> None:
    """Make the Python files of a saved folder stand alone; files that do so already are left as they are."""
    for file in sorted(Path(folder).glob("*.py")):
        code = file.read_text(encoding="utf-8")
        for name in set(IMPORT.findall(code)):
            source = str(sys.modules[f"modeling.{name}"].__file__)
            for needed in (source, *get_relative_import_files(source)):
                shutil.copy(needed, folder)
        file.write_text(IMPORT.sub(r"from .\1 import", code), encoding="utf-8", newline="\n")


class FlatCode:
    """Mixin of configurations, which a model saves after its code and before anything is uploaded."""

    def save_pretrained(self, save_directory: str | Path, *args, **kwargs) -> None:
        """Save as the library does, then make the saved code stand alone."""
        super().save_pretrained(save_directory, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        flatten_code(save_directory)
