"""The section `sim`: settings of the simulator that `sim.simulator` names.

A simulator is a class that a package registers in the entry-point group `vla.simulators`:

    [project.entry-points."vla.simulators"]
    my_robot = "my_package.simulator:MySimulator"

Its `Settings` is a dataclass whose fields are plain types (int, float, bool, str, Literal, tuples
and dictionaries of them), with ranges from `annotated_types`. The section is derived from it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    create_model,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from vla.config.section import Section
from vla.plugins import extend_table, find_target, load_target
from vla.ranges import Integer, Name, Names, NonEmptyNames, Number, Steps, Weights

GROUP = "vla.simulators"
DEFAULT_SIMULATOR = "tabletop"
"""The simulator of recordings of earlier versions, which name none."""
CHECKOUT = Path(__file__).parents[2] / "pyproject.toml"

Pixels = Annotated[Integer, Field(ge=8, le=4096)]
Envs = Annotated[Integer, Field(ge=1, le=4096)]


@runtime_checkable
class SimulatorClass(Protocol):
    """Class of a simulator, which is imported before anything heavy loads.

    `vla.simulator.Simulator` is the protocol of its instances.

    Attributes:
        Settings: a dataclass with a field per setting, among them those of `Simulation`.
        has_scenes: `scenes()` renders scenes with questions about them, for grounding.
        restores_states: its environments have `get_state` and `set_state`, for branches.
        perturbations: values of a setting `perturbation`, "none" among them.
        start_settings: names of the settings that decide a start besides its seed.
    """

    Settings: type
    has_scenes: bool
    restores_states: bool
    perturbations: tuple[str, ...]
    start_settings: tuple[str, ...]

    @staticmethod
    def check(settings: Any) -> None:
        """Raise ValueError, with the setting and its remedy, where a name does not exist."""

    @staticmethod
    def task_names(settings: Any) -> tuple[str, ...]:
        """Names of the tasks that alternate over starts; they label the run."""

    def __call__(self, settings: Any) -> Any:
        """The simulator of these settings; environments are made at their first use."""


class Simulation(Section):
    """Settings that every simulator has.

    Attributes:
        simulator: its name in the entry-point group `vla.simulators`.
        robot: name of the robot in datasets.
        num_envs: environments stepped and rendered together.
        cameras: names of the cameras whose images a policy gets.
        image_size: height and width of an image, pixels.
        max_steps: control steps of an episode.
        reward: weight per reward term.
    """

    simulator: Name
    robot: Name
    num_envs: Envs
    cameras: NonEmptyNames
    image_size: Pixels
    max_steps: Steps
    reward: Weights

    @property
    def kind(self) -> SimulatorClass:
        """The class of the simulator."""
        return find_simulator(self.simulator)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that alternate over starts."""
        return self.kind.task_names(self)

    @property
    def label(self) -> str:
        """The names of the tasks, joined for the name of a folder."""
        return "+".join(self.tasks)

    @property
    def start_settings(self) -> dict[str, Any]:
        """The settings that decide a start besides its seed, {name: value}."""
        values = self.model_dump(mode="json", include=set(self.kind.start_settings))
        return {name: v for name, v in values.items() if (name, v) != ("perturbation", "none")}


@cache
def checkout_entry_points() -> dict[str, str]:
    """The simulators that the pyproject.toml of a checkout registers; none where vla is installed.

    They hold without an installation, and where an editable one recorded an earlier version.
    """
    if not CHECKOUT.exists():
        return {}
    project = tomllib.loads(CHECKOUT.read_text())["project"]
    points: dict[str, str] = project.get("entry-points", {}).get(GROUP, {})
    return points if project["name"] == "vla" else {}


def simulators() -> dict[str, str]:
    """{name: "module:class"} of all installed simulators."""
    return extend_table(checkout_entry_points(), GROUP)


def find_simulator(name: str) -> SimulatorClass:
    """Import the class of the simulator `name`.

    Raises:
        ValueError: no package registers it, or its class lacks an attribute.
    """
    target = find_target(simulators(), "sim.simulator", name)
    try:
        kind: SimulatorClass = load_target(target)
    except ImportError as error:
        raise ValueError(
            f"sim.simulator ({name}) is registered as {target}, which does not import: {error}"
        ) from error
    missing = [part for part in SimulatorClass.__annotations__ if not hasattr(kind, part)]
    if missing:
        raise ValueError(
            f"sim.simulator ({name}) is registered as {target}, which lacks {', '.join(missing)}"
        )
    return kind


def all_perturbations() -> tuple[str, ...]:
    """The perturbations of all installed simulators."""
    known = [find_simulator(name).perturbations for name in simulators()]
    return tuple(dict.fromkeys(name for names in known for name in names))


def section_of_simulator(name: str) -> type[Simulation]:
    """The section of the simulator `name`, derived from its `Settings`."""
    return derive_section(name, find_simulator(name))  # type: ignore[arg-type]


@cache
def derive_section(name: str, kind: SimulatorClass) -> type[Simulation]:
    """Derive a section from the fields of a simulator's `Settings`."""
    hints = get_type_hints(kind.Settings, include_extras=True)
    names = [field.name for field in fields(kind.Settings)]
    lacking = [part for part in Simulation.model_fields if part not in ("simulator", *names)]
    if lacking:
        raise ValueError(
            f"sim.simulator ({name}): its Settings lack the fields {', '.join(lacking)}"
        )
    own: dict[str, Any] = {
        part: (setting_type(hints[part]), ...)
        for part in names
        if part != "simulator" and not is_general(part, hints[part])
    }
    return create_model(kind.Settings.__name__, __base__=Simulation, **own)


def validate_section(values: Any) -> Any:
    """Check plain values as the section of the simulator they name."""
    if not isinstance(values, Mapping):
        return values
    name = values.get("simulator")
    if name is None:
        raise simulator_error("missing", values)
    try:
        section = section_of_simulator(str(name))
    except ValueError as error:
        raise simulator_error(
            PydanticCustomError("simulator", "{why}", {"why": str(error)}), name
        ) from None
    return section.model_validate(values)


def read_section(values: Mapping[str, Any]) -> Simulation:
    """Check plain values, e.g. of a recording, and return them as a section.

    Raises:
        ConfigError: a value cannot be.
    """
    from vla.config.compose import ConfigError
    from vla.config.explain import explain

    try:
        section: Simulation = validate_section(values)
    except ValidationError as error:
        raise ConfigError(explain(error, values)) from None
    return section


def simulator_error(fault: PydanticCustomError | str, value: Any) -> ValidationError:
    """The validation error of a wrong `sim.simulator`."""
    where = InitErrorDetails(type=fault, loc=("simulator",), input=value)
    return ValidationError.from_exception_data("sim", [where])


AnySimulation = SerializeAsAny[Annotated[Simulation, BeforeValidator(validate_section)]]
"""The section of any simulator, by its `simulator`."""


def is_general(name: str, annotation: Any) -> bool:
    """True where `Simulation` already has the field, and the annotation adds no range."""
    return name in Simulation.model_fields and get_origin(annotation) not in (Annotated, Literal)


PLAIN = {int: Integer, float: Number, str: Name, tuple[str, ...]: Names}


def setting_type(annotation: Any) -> Any:
    """Add the rules of all settings to an annotation.

    They refuse empty names, numbers out of bounds and booleans in place of numbers.
    """
    if annotation in PLAIN:
        return PLAIN[annotation]
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return Annotated[(setting_type(arguments[0]), *annotation.__metadata__)]  # type: ignore[return-value]
    if origin in (Union, UnionType):
        if set(arguments) == {str, tuple[str, ...]}:
            return OneOrSeveral
        return Union[tuple(map(setting_type, arguments))]  # noqa: UP007
    if origin in (None, Literal):
        return annotation
    return origin[tuple(map(setting_type, arguments))]


def list_tag(value: Any) -> str:
    """Tag of a value: "several" for a list of names, "one" for a name."""
    return "several" if isinstance(value, list | tuple) else "one"


OneOrSeveral = Annotated[
    Annotated[Name, Tag("one")] | Annotated[NonEmptyNames, Tag("several")],
    Discriminator(list_tag),
]
