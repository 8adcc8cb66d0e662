"""Which folders are datasets of this package: only those may be built anew in their place."""

from __future__ import annotations

import json
import re
from pathlib import Path

from xtdist.config import ConfigError, DataError
from xtdist.data.manifest import MANIFEST_FILE, SIDE_FILES
from xtdist.data.tokenizer import TOKENIZER_FILE

_SHARD = re.compile(r"(train|valid)-\d{5,}(-\d{5,})?\.arrow")


def refuse_foreign(output: Path) -> None:
    """Never build over files that are not a dataset's, whatever the config says.

    Raises:
        ConfigError: ``output`` can't be a folder.
        DataError: it is a file, or a folder that holds anything but a dataset; names the file.
    """
    if not output.name:
        raise ConfigError(f"output: {str(output)!r} is not a folder that can be made")
    if output.exists() and not output.is_dir():
        raise DataError(f"output: {output} is a file; give a folder")
    if not output.is_dir():
        return
    entries = sorted(output.iterdir())
    foreign = [p.name for p in entries if not _is_ours(p)]
    if not foreign and entries and not (output / MANIFEST_FILE).exists():
        foreign = [entries[0].name]  # parts of a dataset without its manifest: not finished by us
    if foreign:
        raise DataError(
            f"output: {output} holds files that are not a dataset ({foreign[0]!r}); choose a "
            "new or empty folder"
        )


def _is_ours(path: Path) -> bool:
    """Whether a dataset's folder has such a file; the manifest must look like one."""
    if not path.is_file():
        return False
    if path.name != MANIFEST_FILE:
        return path.name in (TOKENIZER_FILE, *SIDE_FILES) or _SHARD.fullmatch(path.name) is not None
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and "splits" in tree and "build" in tree
