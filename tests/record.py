"""What a long check measured, written beside the other records: `data/measured/<name>.json`, one entry a topic."""

import json
from datetime import date

from wssl.core.environment import environment
from wssl.core.paths import project_root, write_atomically


def about():
    """Where and when: what every entry carries."""
    return {"environment": environment(), "date": date.today().isoformat()}


def record(name, results):
    """Write the topics of `results` into the record `name`; its other topics stay as they are."""
    path = project_root() / "data" / "measured" / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    write_atomically(path, json.dumps(before | results, indent=1, sort_keys=True) + "\n")
    print(f"Recorded in {path.relative_to(project_root())}")
