"""Folders of YAML groups: built-in, of installed packages, and of --config-dir.

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
"""The built-in YAML: inside an installed package, beside `vla` in a checkout."""
GROUP = "vla.config"
ADDED: list[Path] = []
"""Folders of --config-dir, in order."""


def add_folder(folder: str | Path) -> None:
    """Add a folder to the search path of this process.

    Raises:
        ConfigError: the folder does not exist or holds no group.
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
    """Yield the folders besides the built-in one."""
    for name, module in extend_table({}, GROUP).items():
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"{GROUP}: {name} names {module}, which is no package with YAML files"
            )
        yield from map(Path, spec.submodule_search_locations)
    yield from ADDED


def groups() -> list[str]:
    """Names of the groups of settings: the built-in folders."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def options(group: str) -> list[str]:
    """Options of a group: the YAML files of its folders."""
    return sorted(option_files(group))


def option_files(group: str) -> dict[str, Path]:
    """{option: file} of a group.

    Raises:
        ConfigError: two folders have the same option.
    """
    files: dict[str, Path] = {}
    for folder in (CONFIGS, *added_folders()):
        for path in sorted((folder / group).glob("*.yaml")):
            if files.setdefault(path.stem, path) != path:
                raise ConfigError(
                    f"{group}={path.stem} stands in {files[path.stem]} and in {path}: rename one"
                )
    return files
