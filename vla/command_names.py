"""Names of the console commands, as the user can type them."""

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
"""The console commands, and how a checkout starts them without an installation."""


def command_name(name: str) -> str:
    """A console command as the user can type it: the script's where a script was started."""
    return COMMANDS[name] if Path(sys.argv[0]).suffix == ".py" else name


def with_command_names(text: str) -> str:
    """A text in which every console command stands as the user can type it."""
    return re.sub(
        r"\bvla-(train|eval|view|serve|export|collect|pretrain)\b(?!\.)",
        lambda found: command_name(found[0]),
        text,
    )
