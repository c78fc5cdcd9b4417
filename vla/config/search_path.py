"""Folders with YAML groups: ours, those of installed packages, those named by --config-dir.

A package adds options by an entry point of the group `vla.config` that names a package or folder
of it with groups inside, e.g. `my_package/configs/algorithm/spo.yaml`:

    [project.entry-points."vla.config"]
    my_package = "my_package.configs"
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from vla.config.errors import ConfigError
from vla.plugins import extend_table

PACKAGED = Path(__file__).parents[1] / "configs"
CONFIGS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"
"""The YAML that ships: inside an installed package, beside `vla` in a checkout."""
GROUP = "vla.config"
ADDED: list[Path] = []
"""Folders of --config-dir, in order."""


def add_folder(folder: str | Path) -> None:
    """Search a further folder in this process.

    Raises ConfigError where it is not there or holds no group.
    """
    path = Path(folder).resolve()
    if not path.is_dir():
        raise ConfigError(f"--config-dir {folder}: no such folder")
    if not any(path.glob("*/*.yaml")):
        raise ConfigError(
            f"--config-dir {folder} has no GROUP/OPTION.yaml in it, e.g. algorithm/mine.yaml"
        )
    if path not in ADDED:
        ADDED.append(path)


def added_folders() -> Iterator[Path]:
    """The folders besides ours."""
    for name, module in extend_table({}, GROUP).items():
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"{GROUP}: {name} names {module}, which is no package with YAML files"
            )
        yield from map(Path, spec.submodule_search_locations)
    yield from ADDED


def groups() -> list[str]:
    """The groups of settings: the folders of ours."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def options(group: str) -> list[str]:
    """What can be chosen in a group: the YAML files of its folders."""
    return sorted(option_files(group))


def option_files(group: str) -> dict[str, Path]:
    """{option of a group: its file}.

    Raises ConfigError where two folders have one option.
    """
    found: dict[str, Path] = {}
    for folder in (CONFIGS, *added_folders()):
        for path in sorted((folder / group).glob("*.yaml")):
            if found.setdefault(path.stem, path) != path:
                raise ConfigError(
                    f"{group}={path.stem} stands in {found[path.stem]} and in {path}: rename one"
                )
    return found
