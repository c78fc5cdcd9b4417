"""Settings of a run that starts from a policy (`policy.path`): its model, policy and simulator.

The policy fixes the settings of its architecture, and a contradiction is refused. Stages that it
has behind it (grounding, head pretraining, SFT) run again only where their settings are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vla.config.errors import ConfigError
from vla.config.explain import format_setting
from vla.config.renamed import with_new_names
from vla.config.resuming import flatten_settings
from vla.files.policy_folders import PolicyKind, find_policy, hub_folder
from vla.files.reading import read_json, read_yaml
from vla.policies import LEROBOT
from vla.runtime import is_hub_name

SETTING = "policy.path"
REPOSITORY = "model.backbone.repository"
IMAGES = "observation.images."
FREE = (
    "policy.path",
    "policy.statistics",
    "policy.temperature",
    "policy.num_steps",
    "policy.num_stochastic_steps",
    "policy.noise_level",
    "policy.min_std",
    "policy.min_noise",
    "policy.max_noise",
    "policy.clip",
    "policy.samples",
    "policy.time_*",
    "policy.stop_gradient_to_vlm",
    "policy.min_scale",
    "policy.distribution",
    "policy.scale",
    "policy.learn_scale",
    "model.freeze_*",
    "model.lora",
    "model.lora.*",
    "model.quantization",
    "model.gradient_checkpointing",
    "model.detach_critic",
)
"""Settings of the sections `policy` and `model` that the weights of a policy leave open."""
SEEN = ("sim.cameras", "sim.image_size")
"""Settings of the simulator that decide what a policy sees."""
SFT_SWITCHES = ("sft.num_steps", "sft.head_steps", "sft.head_only", "sft.max_seconds", "data.path")
"""Settings that ask for SFT."""
SENTENCE = "data.sentence"


@dataclass(frozen=True)
class PolicyStart:
    """A policy to start from, as its folder describes it.

    Attributes:
        name: the value of `policy.path`.
        kind: `run` and `export` are ours, `lerobot` is a checkpoint of LeRobot.
        folder: folder of its files, on this machine.
        saved: its settings by section, of `data` the sentence alone; those of LeRobot name cameras
            and image size.
    """

    name: str
    kind: PolicyKind
    folder: Path
    saved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def policy_name(self) -> str | None:
        """Kind of the policy, an option of the group `policy`."""
        name: str | None = self.saved.get("policy", {}).get("name")
        return name

    @property
    def is_adapter(self) -> bool:
        """True for adapters whose base is a model of its own: a setting says where it is."""
        return self.kind != "lerobot" and "base" in read_json(self.folder / "policy.json")

    def apply(self, values: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
        """Composed values with the sections of the policy in the place of the defaults.

        `given` are the user's settings. SFT has no steps unless they ask for it.
        """
        merged = dict(values)
        for section in ("model", "policy"):
            if section in self.saved:
                merged[section] = {**values[section], **self.saved[section]}
        sim = dict(self.saved.get("sim", {}))
        if "sim" in given or self.kind == "lerobot":
            sim = {key: value for key, value in sim.items() if f"sim.{key}" in SEEN}
            merged["sim"] = {**values["sim"], **sim}
        elif sim:
            merged["sim"] = sim
        sft = dict(values["sft"])
        if "sft.head_steps" not in given:
            sft["head_steps"] = 0
        if not any(name in given for name in SFT_SWITCHES):
            sft["num_steps"] = 0
        merged["sft"] = sft
        if "grounding.num_steps" not in given:
            merged["grounding"] = {**values["grounding"], "num_steps": 0}
        if "data" in self.saved:
            merged["data"] = {**values["data"], **self.saved["data"]}
        return merged

    def check(self, values: Mapping[str, Any], given: Mapping[str, str]) -> None:
        """Refuse given settings and groups that contradict the policy.

        Raises:
            ConfigError: names each setting, both values and the remedy.
        """
        asked = flatten_settings(values)
        own = flatten_settings(self.saved)
        differing = [
            (name, cause)
            for name in sorted(own)
            if is_fixed(name)
            and not (name == REPOSITORY and self.is_adapter)
            and asked.get(name) != own[name]
            and (cause := given_cause(name, given)) is not None
        ]
        # Another kind has other settings altogether: its name says enough.
        kinds = [entry for entry in differing if entry[0].endswith(".name")]
        lines = [
            f"{name} ({format_setting(asked.get(name))}) contradicts {SETTING}={self.name}, whose "
            f"policy was made with {name}={format_setting(own[name])}: leave {cause} out, or start "
            "a new policy without policy.path"
            for name, cause in kinds or differing
        ]
        if lines:
            raise ConfigError("\n".join(lines))


def refuse_own_parts(name: str, given: Mapping[str, str]) -> None:
    """Refuse settings of parts that a policy of LeRobot lacks, which would have no effect.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    for key, value in given.items():
        if key.split(".")[0] in ("model", "grounding", "recap") and key != "model.detach_critic":
            raise ConfigError(
                f"{key} ({value}) has no effect on {SETTING}={name}, a policy of LeRobot with a "
                "model of its own: leave it out"
            )
        if key in SFT_SWITCHES:
            raise ConfigError(
                f"{key} ({value}): SFT of a policy of LeRobot ({SETTING}={name}) is done by "
                "lerobot-train --policy.path; leave it out, and give the result to policy.path"
            )


def is_fixed(name: str) -> bool:
    """True for a setting that the weights of a policy determine."""
    if name in (*SEEN, SENTENCE):
        return True
    inside = name.startswith(("model.", "policy."))
    return inside and not any(fnmatchcase(name, pattern) for pattern in FREE)


def given_cause(name: str, given: Mapping[str, str]) -> str | None:
    """The given setting or group that decides `name`; None where nothing given does."""
    parts = name.split(".")
    paths = [".".join(parts[:i]) for i in range(len(parts), 0, -1)]
    return next((path for path in paths if path in given), None)


def read_policy_start(name: str) -> PolicyStart:
    """Find the policy that `policy.path` names, and read its settings.

    Raises:
        ConfigError: nothing has that name, or it holds no robot policy.
    """
    folder = Path(name)
    try:
        if not folder.exists():
            if not is_hub_name(name):
                raise ConfigError(
                    f"{SETTING}={name} is neither a folder nor user/name[@revision] of the hub: "
                    "give a run, an exported policy or a checkpoint of LeRobot"
                )
            folder = hub_folder(name, f"{SETTING}=")
        found = find_policy(folder)
        if found is None:
            raise ConfigError(no_policy_message(name, folder))
        kind, files = found
        return PolicyStart(name, kind, files, read_sections(kind, files, name))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def no_policy_message(name: str, folder: Path) -> str:
    """Why a folder without a policy cannot be `policy.path`."""
    settings = folder / "config.yaml"
    if settings.is_file():
        mode = read_yaml(settings).get("mode")
        if mode == "text":
            return f"{SETTING}={name} is a run of mode=text: give the folder of a robot policy"
        return f"{SETTING}={name} holds no policy yet: its run ended before SFT; resume it first"
    return (
        f"{SETTING}={name} holds no policy: give the folder of a finished run, an export or a "
        "checkpoint of LeRobot"
    )


def read_sections(kind: PolicyKind, folder: Path, name: str) -> dict[str, Any]:
    """The settings that a policy fixes, by section, under their present names."""
    if kind == "lerobot":
        values = read_json(folder / "config.json", finite=False)
        chunk = values.get("n_action_steps", 1)
        policy = {"name": LEROBOT, "path": name, "statistics": "policy", "chunk": chunk}
        return {"sim": read_lerobot_inputs(folder, name), "policy": policy}
    values = with_new_names(read_yaml(folder / "config.yaml"))
    policy = {**values["policy"], "path": name, "statistics": "policy"}
    sentence = {"sentence": values["data"].get("sentence")}
    return {"model": values["model"], "policy": policy, "sim": values["sim"], "data": sentence}


def read_lerobot_inputs(folder: Path, name: str) -> dict[str, Any]:
    """Cameras and image size that a checkpoint of LeRobot wants to see."""
    features = read_json(folder / "config.json", finite=False)["input_features"]
    shapes = {
        key.removeprefix(IMAGES): tuple(feature["shape"][-2:])
        for key, feature in features.items()
        if key.startswith(IMAGES)
    }
    sizes = {size for shape in shapes.values() for size in shape}
    if len(sizes) > 1:
        raise ConfigError(
            f"{SETTING}={name} was made for cameras {shapes}: a simulator draws all of them square "
            "and of one size"
        )
    seen: dict[str, Any] = {"cameras": list(shapes)} if shapes else {}
    return seen | ({"image_size": sizes.pop()} if sizes else {})
