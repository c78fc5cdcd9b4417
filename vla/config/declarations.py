"""Settings sections derived from the dataclasses of the parts they configure.

A part (an algorithm, a policy) declares its settings once: as the annotated fields of a frozen
dataclass in its own module, with ranges from `vla.ranges`. That module may import torch, and
settings are checked before torch loads. `read_declaration` therefore executes only the slice of the
module's source that the dataclass needs: the class with its fields, properties and `__post_init__`,
and the imports and definitions these refer to. Annotations and bodies of other methods are dropped,
so what they import is never loaded.

    class FlowHead(nn.Module): ...

    @dataclass(frozen=True)
    class FlowSettings:
        num_steps: SmallCount
        noise_level: Positive

    class PolicySection(DeclaredSection):
        group: ClassVar[str] = "policy"

    section_type("flow", read_declaration("vla.policies.flow:FlowSettings"), PolicySection)

A class keeps its bases, so a base class from a heavy module loads that module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema

from vla.config.errors import ConfigError
from vla.config.section import Section
from vla.plugins import load_target


class DeclaredSection(Section):
    """Base of the sections of one kind of part; `name` discriminates, `group` is the settings
    group."""

    group: ClassVar[str]
    declaration: ClassVar[type[Any]]
    name: str

    @property
    def declared(self) -> Any:
        """The dataclass with the values of this section, checked by its `__post_init__`.

        Raises:
            ConfigError: two values conflict.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self.declaration)}
        try:
            return self.declaration(**values)
        except ValueError as error:
            name = rf"\b({'|'.join(values)})(?= \(|=| is )"
            raise ConfigError(re.sub(name, rf"{self.group}.\1", str(error))) from None


S = TypeVar("S", bound=DeclaredSection)


@dataclass(frozen=True)
class OneOf:
    """Annotation of a field that holds one of several sections, discriminated by `name`.

    `algorithm: Annotated[AlgorithmSection, OneOf(sections)]` has the common base as its static
    type.
    """

    sections: Sequence[type[DeclaredSection]]

    def __get_pydantic_core_schema__(
        self, source: type, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        union: Any = Union[tuple(self.sections)]  # noqa: UP007
        return handler.generate_schema(Annotated[union, Field(discriminator="name")])


def named_sections(table: Mapping[str, str], base: type[S]) -> dict[str, type[S]]:
    """Derive the section of every entry of a table {name: "module:Dataclass"}."""
    return {
        name: section_type(name, read_declaration(target), base) for name, target in table.items()
    }


def section_type(name: str, declaration: type, base: type[S]) -> type[S]:
    """Derive the section `name` from the fields of a dataclass, without defaults.

    Raises:
        ValueError: `declaration` is no dataclass.
    """
    if not is_dataclass(declaration):
        raise ValueError(f"{declaration.__name__} ({name}) must be a dataclass to declare settings")
    own: dict[str, Any] = {"name": (Literal[name], ...)}
    own |= {field.name: (field.type, ...) for field in fields(declaration)}
    section = create_model(
        declaration.__name__,
        __base__=base,
        __doc__=declaration.__doc__,
        **own,
    )
    section.declaration = declaration
    return section


def read_declaration(target: str) -> type:
    """Execute the slice of a module's source that defines the dataclass "module:Class".

    Properties and `__post_init__` are kept, other methods are left out. A module without source is
    imported.

    Raises:
        ValueError: the module or the class does not exist.
    """
    module, _, name = target.partition(":")
    source = _read_source(module)
    if source is None:
        return load_target(target)  # type: ignore[no-any-return]
    code = compile(_slice(ast.parse(source), name, target), module, "exec", dont_inherit=True)
    namespace: dict[str, Any] = {"__name__": module, "__package__": module.rpartition(".")[0]}
    exec(code, namespace)
    return namespace[name]  # type: ignore[no-any-return]


def _read_source(module: str) -> str | None:
    """Read the source of a module without executing it; its parent packages are imported."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise ValueError(f"module {module} cannot be found: install its package")
    get_source = getattr(spec.loader, "get_source", None)
    return None if get_source is None else get_source(module)


def _slice(tree: ast.Module, name: str, target: str) -> ast.Module:
    """The statements that define a class and, transitively, every name it refers to."""
    definitions: dict[str, ast.stmt] = {}
    for statement in tree.body:
        definitions |= _bindings(statement)
    if name not in definitions:
        raise ValueError(f"{target}: the module defines no {name!r}")
    needed: dict[str, ast.stmt] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in needed or current not in definitions:  # a builtin, or a local name
            continue
        needed[current] = _without_annotations(_reduce(definitions[current]))
        waiting += [n.id for n in ast.walk(needed[current]) if isinstance(n, ast.Name)]
    body = [needed[key] for key in definitions if key in needed]
    return ast.fix_missing_locations(ast.Module(body, []))


def _bindings(statement: ast.stmt) -> dict[str, ast.stmt]:
    """Names that a statement binds, {name: statement}; an import is split by name.

    `from __future__` is dropped, because annotations must be evaluated here.
    """
    match statement:
        case ast.Import(names=names):
            return {a.asname or a.name.partition(".")[0]: ast.Import([a]) for a in names}
        case ast.ImportFrom(module="__future__"):
            return {}
        case ast.ImportFrom(module=module, names=names, level=level):
            return {a.asname or a.name: ast.ImportFrom(module, [a], level) for a in names}
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return {name: statement}
        case ast.TypeAlias(name=ast.Name(id=name)) | ast.AnnAssign(target=ast.Name(id=name)):
            return {name: statement}
        case ast.Assign(targets=targets):
            return {t.id: statement for t in targets if isinstance(t, ast.Name)}
    return {}


def _reduce(statement: ast.stmt) -> ast.stmt:
    """Drop the methods of a class that its settings do not need."""
    if not isinstance(statement, ast.ClassDef):
        return statement
    methods = {m.name: m for m in statement.body if isinstance(m, ast.FunctionDef)}
    required = {n for n, m in methods.items() if n == "__post_init__" or _is_property(m)}
    waiting = list(required)
    while waiting:  # required methods call others
        called = {n.attr for n in ast.walk(methods[waiting.pop()]) if isinstance(n, ast.Attribute)}
        new = (called & methods.keys()) - required
        required |= new
        waiting += new
    statement.body = [
        part
        for part in statement.body
        if not isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) or part.name in required
    ] or [ast.Pass()]
    return statement


def _is_property(method: ast.FunctionDef) -> bool:
    return any(
        isinstance(d, ast.Name) and d.id in ("property", "cached_property")
        for d in method.decorator_list
    )


def _without_annotations(statement: ast.stmt) -> ast.stmt:
    """Drop the annotations of functions; only those of fields are needed."""
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return statement
