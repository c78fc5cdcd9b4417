"""The table of preference objectives; losses and settings are in its modules."""

from __future__ import annotations

OBJECTIVES = {
    "dpo": "vla.preference.objective:DPO",
    "ipo": "vla.preference.objective:IPO",
    "kto": "vla.preference.objective:KTO",
    "plackett_luce": "vla.preference.objective:PlackettLuce",
    "orpo": "vla.preference.objective:ORPO",
    "simpo": "vla.preference.objective:SimPO",
}
"""{name in `configs/preference`: "module:Dataclass"}."""
