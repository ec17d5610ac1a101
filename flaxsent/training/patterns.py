"""Names and patterns of names → the files that a run learns from."""

import glob
from collections.abc import Sequence
from pathlib import Path


def files_of(patterns: Sequence[str]) -> list[str]:
    """The files of names and patterns, each once; what is the name of a file is no pattern.

    Raises:
        FileNotFoundError: no file has a name of the pattern.
    """
    files: dict[str, None] = {}
    for pattern in patterns:
        is_pattern = glob.has_magic(pattern) and not Path(pattern).exists()
        found = sorted(glob.glob(pattern, recursive=True)) if is_pattern else [pattern]
        if not found:
            raise FileNotFoundError(f"{pattern}: no such file.")
        files |= dict.fromkeys(found)
    return [*files]


def listed(files: Sequence[str]) -> str:
    """What a message calls them."""
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
