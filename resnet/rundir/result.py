"""<out>/result.json: what a run came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resnet import UserError, files

FILE = "result.json"
PRUNE = "prune"  # <out>/prune: a search asks the run to stop, and will not resume it


def read(out: Path) -> dict[str, Any] | None:
    """<out>/result.json; None while the run has not ended. Raises UserError for one that is no regular file of a run's size."""
    try:
        return dict(files.read_json(out / FILE))
    except UserError:
        raise
    except (OSError, ValueError, TypeError):
        return None


def write(out: Path, content: dict[str, Any]) -> Path:
    """Write <out>/result.json at once or not at all; its path."""
    return files.write_text(out / FILE, json.dumps(content, indent=1) + "\n")
