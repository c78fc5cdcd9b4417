"""Names of the console commands: `vla-train` where installed, a script in a checkout."""

from __future__ import annotations

import re
import sys
from pathlib import Path

COMMANDS = {
    "vla-train": "python scripts/train_vla.py",
    "vla-eval": "python scripts/evaluate.py",
    "vla-view": "python scripts/view_rollouts.py",
    "vla-serve": "python scripts/serve_policy.py",
    "vla-export": "python scripts/export_policy.py",
    "vla-collect": "python scripts/collect_demos.py",
    "vla-pretrain": "python scripts/pretrain_vlm.py",
}
"""{console command: its start from a checkout that is not installed}."""


def command_name(name: str) -> str:
    """The console command, or the script where the process was started by a script."""
    return COMMANDS[name] if Path(sys.argv[0]).suffix == ".py" else name


def with_command_names(text: str) -> str:
    """Replace every console command in a text by its `command_name`."""
    return re.sub(
        r"\bvla-(train|eval|view|serve|export|collect|pretrain)\b(?!\.)",
        lambda match: command_name(match[0]),
        text,
    )
