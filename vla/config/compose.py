"""Composition of settings: `key=value` strings, presets, YAML groups and resumed runs as plain
values.

A misspelled name is refused with the nearest one that exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vla.config.errors import ConfigError
from vla.config.language_model_start import SETTING as LANGUAGE_MODEL
from vla.config.language_model_start import with_language_model
from vla.config.policy_start import SETTING, read_policy_start, refuse_own_parts
from vla.config.renamed import check_renamed, with_model_parts
from vla.config.resuming import incompatible_changes
from vla.config.search_path import CONFIGS, added_folders, groups, option_files, options
from vla.files.folder_kinds import describe_folder, is_checkpoint
from vla.files.policy_folders import find_policy
from vla.files.reading import DamagedFile, read_yaml
from vla.files.secrets import find_masked_settings
from vla.spelling import nearest_name, suggestion

ROOT_CONFIG = "train_vla"
EMPTY = ("", "''", '""')
NEVER_EMPTY = ("resume", "run_dir", "preset", "policy.path", "language_model.path")


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values of a run: those saved in RUN under `resume=RUN`, otherwise those of configs/.

    Raises:
        ConfigError: a string is no setting, a name or value cannot be, or RUN is damaged.
    """
    given = split_overrides(overrides)
    empty = next(
        (key for key in NEVER_EMPTY if given.get(key, "null").strip() in EMPTY),
        None,
    )
    if empty is not None:
        raise ConfigError(
            f"{empty}= is empty (an unset variable of the shell?): give a folder, or leave "
            f"{empty} out"
        )
    if given.get("resume", "null") != "null":
        return resumed_values(given.pop("resume"), given)
    if given.get("language_model.path", "null") != "null":
        path = parse_overrides({LANGUAGE_MODEL: given[LANGUAGE_MODEL]})[LANGUAGE_MODEL]
        given = with_language_model(given, str(path))
    if given.get("policy.path", "null") != "null" and given.get("mode", "robot") == "robot":
        return values_from_policy(given)
    if given.get("mode") == "text" and "preference" in given:
        given = {"text": "preference", **given}  # the text mode that takes a preference loss
    preset = given.pop("preset", "default")
    check_groups({"preset": preset, **given})
    return compose_with_hydra({**preset_values(preset, given.get("mode", "robot"), given), **given})


def values_from_policy(given: Mapping[str, str]) -> dict[str, Any]:
    """Plain values of a run that starts from the policy `policy.path`.

    Raises:
        ConfigError: there is no policy, or a given setting contradicts it.
    """
    start = read_policy_start(str(parse_overrides({SETTING: given[SETTING]})[SETTING]))
    preset = given.get("preset", "default")
    asked = {key: value for key, value in given.items() if key != "preset"}
    check_groups({"preset": preset, **asked})
    if start.kind == "lerobot":
        refuse_own_parts(start.name, asked)
    name = start.policy_name
    chosen = {} if name is None or name not in options("policy") else {"policy": name}
    combined = {**preset_values(preset, "robot", asked), **chosen, **asked}
    own = {key for key in combined if "." in key and key.split(".")[0] in start.saved}
    composed = compose_with_hydra({key: combined[key] for key in combined if key not in own})
    start.check(composed, {key: asked[key] for key in asked if key in groups()})
    values = apply_overrides(start.apply(composed, given), {key: combined[key] for key in own})
    start.check(values, {key: asked[key] for key in own if key in asked})
    return values


def split_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Split `key=value` strings into {key: value}; of two equal keys the last one counts.

    Hydra's `+key` (add) and `~key` (remove) keep their sign.
    """
    given = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals and not key.startswith("~"):
            example = next(
                (f": {group}={key}" for group in groups() if key in options(group)),
                ", e.g. sim=pick_place",
            )
            raise ConfigError(f"{key!r} is no setting: write key=value{example}")
        given[key] = value
    return given


def check_groups(given: Mapping[str, str]) -> None:
    """Refuse an option that its group lacks, and a group that the chosen mode lacks."""
    known = groups()
    for key, value in given.items():
        if key in known and value not in options(key):
            raise ConfigError(f"{key}={value}: no such option{suggestion(value, options(key))}")
    mode = given.get("mode", "robot")
    own_groups = mode_groups(mode)
    for key in given:
        if key in known and key not in {"mode", "preset", *own_groups}:
            others = [name for name in options("mode") if key in mode_groups(name)]
            remedy = f"; it belongs to mode={others[0]}" if others else ""
            raise ConfigError(f"{key}={given[key]}: mode={mode} has no group {key!r}{remedy}")


def mode_groups(mode: str) -> list[str]:
    """The groups that a mode consists of, read from the list of defaults in its YAML."""
    return [key.lstrip("/") for entry in option_values("mode", mode)["defaults"] for key in entry]


def preset_values(preset: str, mode: str, given: Mapping[str, str]) -> dict[str, str]:
    """The {key: value} pairs of a preset for a mode; settings of the user override them.

    A pair is dropped where the chosen option of its group lacks the setting and another option has
    it. Every option of the group `text` has settings of its own.
    """
    values = option_values("preset", preset)[mode]
    for group in {key for key in given if key in mode_groups(mode)}:
        others = set().union(*(option_paths(group, name) for name in options(group)))
        foreign = others - option_paths(group, given[group])
        values = {
            key: v
            for key, v in values.items()
            if key.partition(".")[::2] not in {(group, k) for k in foreign}
        }
    return {
        key: yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
        for key, value in values.items()
    }


def compose_with_hydra(given: Mapping[str, str]) -> dict[str, Any]:
    """Compose the overrides with Hydra.

    Raises:
        ConfigError: a key or option does not exist; the message suggests the nearest one.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    overrides = [
        key if key.startswith("~") and not value else f"{key}={value}"
        for key, value in given.items()
    ]
    further = ", ".join(f"'file://{folder}'" for folder in added_folders())
    search = [f"hydra.searchpath=[{further}]"] if further else []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            config = hydra_compose(ROOT_CONFIG, overrides=[*search, *overrides])
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            parse_overrides({key: value for key, value in given.items() if not key.startswith("~")})
            chosen = {key: value for key, value in given.items() if key in groups()}
            values = hydra_compose(
                ROOT_CONFIG,
                overrides=[*search, *(f"{key}={value}" for key, value in chosen.items())],
            )
            check_keys(given, OmegaConf.to_container(values))  # type: ignore[arg-type]
            check_new_names(given, OmegaConf.to_container(values))  # type: ignore[arg-type]
            raise ConfigError(str(error).split("\n")[0]) from None


def parse_overrides(given: Mapping[str, str]) -> dict[str, Any]:
    """Parse the strings by Hydra's grammar into {key: value}.

    Raises:
        ConfigError: names the string that cannot be parsed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values = {}
    for key, value in given.items():
        try:
            values[key] = OverridesParser.create().parse_override(f"{key}={value}").value()
        except HydraException as error:
            raise ConfigError(
                f"{key}={value}: the value cannot be parsed: {str(error).splitlines()[0]}"
            ) from None
    return values


def check_keys(given: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Refuse a key that does not exist; suggest the option that has it, or the nearest key."""
    known = setting_paths(values)
    for key, value in given.items():
        if key in known or key in groups() or key.startswith(("+", "~")):
            continue
        check_renamed(key, value)
        group, _, rest = key.partition(".")
        owners = [
            name for name in options(group) if rest in setting_paths(option_values(group, name))
        ]
        remedy = (
            f"; it belongs to {group}={' or '.join(owners)}"
            if owners
            else suggest_setting(key, sorted(known | {*groups()}))
        )
        raise ConfigError(f"{key}={value}: no such setting{remedy}")


def check_new_names(given: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Refuse a new name in `section={name: value}`; the message shows how to add it."""
    for key, value in given.items():
        if key not in setting_paths(values):
            continue
        present = value_at(values, key)
        new = parse_overrides({key: value})[key]
        if not isinstance(present, Mapping) or not isinstance(new, Mapping):
            continue
        for name, number in new.items():
            if name not in present:
                check_renamed(f"{key}.{name}", number)
                others = f", and remove others by ~{key}.{next(iter(present))}" if present else ""
                raise ConfigError(
                    f"{key}={value}: {key} has no {name} yet: add it by "
                    f"+{key}.{name}={number}{others}"
                )


def value_at(values: Any, path: str) -> Any:
    """The value at a dotted path in nested values; None where the path does not exist."""
    for part in path.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def option_values(group: str, option: str) -> dict[str, Any]:
    """The values of an option for its own group; the file may set other groups too."""
    values = read_yaml(option_files(group)[option])
    own = values.get(group)
    return own if isinstance(own, dict) else values


def option_paths(group: str, option: str) -> set[str]:
    """Every dotted path of an option, those of the options it inherits from included."""
    entries = read_yaml(option_files(group)[option]).get("defaults", [])
    builds_on = [entry for entry in entries if isinstance(entry, str) and entry in options(group)]
    return setting_paths(option_values(group, option)).union(
        *(option_paths(group, name) for name in builds_on)
    )


def setting_paths(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Every dotted path in nested values, sections and settings alike."""
    paths = set()
    for key, value in values.items():
        paths.add(prefix + str(key))
        if isinstance(value, Mapping):
            paths |= setting_paths(value, f"{prefix}{key}.")
    return paths


def suggest_setting(wrong: str, known: Sequence[str]) -> str:
    """Suggest a setting with the same last name in any section, otherwise one of similar
    spelling."""
    last = wrong.rsplit(".", 1)[-1]
    same_last = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = same_last[0] if same_last else nearest_name(wrong, known)
    return f"; did you mean {near}?" if near else "; --cfg job prints all settings"


def read_settings(run: Path) -> dict[str, Any]:
    """Read the config.yaml of a run and check its structure: a mode, and a mapping for each group.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run / "config.yaml"
    remedy = "restore it (every checkpoint of the run holds a copy), or start a new run"
    try:
        values = read_yaml(path, remedy=remedy)
        if values.get("mode") not in options("mode"):
            raise DamagedFile(
                path, f"mode ({values.get('mode')}) is none of {', '.join(options('mode'))}", remedy
            )
        for group in mode_groups(values["mode"]):
            if not isinstance(values.get(group, {}), Mapping):
                raise DamagedFile(
                    path, f"{group} ({values[group]}) is no section of settings", remedy
                )
        if not all(isinstance(key, str) for key in values):
            raise DamagedFile(path, "the key of a setting is not text", remedy)
    except DamagedFile as error:
        raise ConfigError(str(error)) from None
    return values


def apply_overrides(values: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Plain values updated by `key=value` strings; every key must exist."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    check_keys(given, values)
    new_values = parse_overrides(given)
    try:
        config = OmegaConf.create(dict(values))
        for key, value in new_values.items():
            OmegaConf.update(config, key, value, merge=False)
        return OmegaConf.to_container(config)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).split("\n")[0]) from None


def resumed_values(run: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The saved values of a run, updated by the settings given beside `resume=RUN`.

    Raises:
        ConfigError: RUN is no run, or a setting does not fit its checkpoints.
    """
    check_is_run(Path(run))
    values = fill_new_settings(read_settings(Path(run)))
    chosen = [f"{key}={value}" for key, value in given.items() if key in groups()]
    if chosen:
        raise ConfigError(
            f"{chosen[0]} cannot change under resume ({run}): leave it out, or start a new run"
        )
    resumed = {**apply_overrides(values, given), "resume": run, "run_dir": run}
    for name in find_masked_settings(resumed):
        raise ConfigError(
            f"{name} was saved without its secret in {run}: give {name}=... beside resume=, or an "
            "address without a secret and the key in the environment (OPENAI_API_KEY)"
        )
    check_fits(run, values, resumed)
    return resumed


def check_is_run(folder: Path) -> None:
    """Refuse what is no run.

    Raises:
        ConfigError: names what it is, and the setting that takes it.
    """
    if not folder.exists():
        others = sorted(str(path.parent) for path in folder.parent.glob("*/config.yaml"))
        raise ConfigError(
            f"resume ({folder}) is no run: there is no such folder{suggestion(str(folder), others)}"
        )
    found = find_policy(folder) if folder.is_dir() else None
    has_settings = (folder / "config.yaml").is_file()
    if has_settings and (found is None or found[0] == "run") and not is_checkpoint(folder):
        return
    what, remedy = describe_folder(folder)
    raise ConfigError(f"resume ({folder}) is no run, it is {what}: {remedy}")


def fill_new_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings with today's defaults of groups and settings that their version lacked.

    A section of another kind than today's default (its `name`, or its simulator) keeps its own.
    """
    chosen = {"mode": values["mode"]}
    for group in ("policy", "language_model"):
        name = values.get(group, {}).get("name")
        if group in mode_groups(values["mode"]) and name in options(group):
            chosen[group] = name
    today = compose_with_hydra(chosen)
    values = with_model_parts(values)
    filled = {**today, **values}
    own = option_values("mode", values["mode"])
    for name in mode_groups(values["mode"]):
        saved = values.get(name)
        if isinstance(saved, Mapping):
            added = today[name] if is_same_kind(saved, today[name]) else own.get(name, {})
            filled[name] = {**added, **saved}
    return filled


def is_same_kind(saved: Mapping[str, Any], today: Mapping[str, Any]) -> bool:
    """True where a saved section has the kind of today's: name, simulator and task."""
    if "task" in today and "task" not in saved:
        return False
    return all(saved.get(key, today.get(key)) == today.get(key) for key in ("name", "simulator"))


def check_fits(run: str, values: Mapping[str, Any], resumed: Mapping[str, Any]) -> None:
    """Refuse changes that do not fit the checkpoints and data of a run.

    Settings saved without their secret are exempt, because they have to be given again.
    """
    saved = {**values, "resume": run, "run_dir": run}
    refused = [
        f"{name} ({new}) does not fit resume={run}: the files of the run were made with {old}; "
        "leave it out, or start a new run"
        for name, old, new in incompatible_changes(saved, resumed)
        if name not in find_masked_settings(values)
    ]
    if refused:
        raise ConfigError("\n".join(refused))
