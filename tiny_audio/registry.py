"""Registries of parts. A registry maps each name to a config type and a builder.

A part registers itself when its file is imported. The file defines a config whose ``name`` is a ``Literal``, and a
builder that takes this config:

    class ConvConfig(ProjectorConfig):
        name: Literal["conv"] = "conv"

    @PROJECTORS.register
    def build_conv(config: ConvConfig, context: ProjectorContext) -> Projector: ...

One builder can build several parts. Its first argument is then annotated with the union of their configs. In a pydantic
model, ``Annotated[ProjectorConfig, PROJECTORS]`` is the discriminated union of all registered configs. After pydantic
has built the schema of this union, the registry accepts no more parts, because the schema would lack them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tiny_audio.config import RegistryError, UserError

ConfigT = TypeVar("ConfigT", bound=BaseModel)
PartT = TypeVar("PartT")
BuilderT = TypeVar("BuilderT", bound=Callable[..., Any])

# The tag in the discriminated union for bare names (`projector: conv`) and for values without a registered name. The
# tag appears in the locations of pydantic's errors, so it has brackets like pydantic's own tag "[key]".
_BY_NAME = "[name]"


class UnknownPartError(UserError):
    """No part is registered under the given name."""


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """Return the end of an error message: the nearest allowed name, if any is similar, then all allowed names.

    >>> did_you_mean("swigloo", ["conv", "swiglu"])
    "did you mean 'swiglu'? Allowed: conv, swiglu"
    """
    names = sorted(allowed)
    nearest = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}Allowed: {', '.join(names) or '(none)'}"


@dataclass(frozen=True)
class Entry(Generic[ConfigT, PartT]):
    """One registered part."""

    name: str
    config: type[ConfigT]
    build: Callable[..., PartT]

    @property
    def module(self) -> str:
        """The name of the module that defines the builder. An exported model contains this module."""
        return self.build.__module__

    @property
    def summary(self) -> str:
        """The first line of the config's docstring."""
        return (self.config.__doc__ or "").strip().split("\n")[0]


class Registry(Generic[ConfigT, PartT]):
    """The parts of one kind.

    Args:
        kind: the noun for a part in messages, such as ``"projector"``.
        config: base class of the parts' configs.
        package: the package whose modules :meth:`discover` imports; None if the parts are not in one package.
        entry_points: the group of entry points through which packages add parts; None if packages cannot add parts.
    """

    def __init__(
        self,
        kind: str,
        config: type[BaseModel],
        *,
        package: str | None = None,
        entry_points: str | None = None,
    ) -> None:
        self.kind = kind
        self.config = config
        self._package = package
        self._entry_point_group = entry_points
        self._entries: dict[str, Entry[ConfigT, PartT]] = {}
        self._discovered = False
        self._closed = False

    def register(self, builder: BuilderT) -> BuilderT:
        """Decorate a builder ``(config: SomeConfig, context) -> part``.

        Raises:
            RegistryError: the builder has no usable config annotation, the name is taken, or the recipe schema was
                already built.
        """
        for config in self._config_types(builder):
            name = self._part_name(config)
            if self._closed:
                raise RegistryError(
                    f"{self.kind} {name!r} of {builder.__module__} was registered after the recipe schema was built; "
                    f"import {builder.__module__} before tiny_audio.recipe, or offer it through the entry point group "
                    f"{self._entry_point_group!r}"
                )
            if name in self._entries:
                raise RegistryError(
                    f"{self.kind} {name!r} is defined twice: in {self._entries[name].module} and in "
                    f"{builder.__module__}; rename one of them"
                )
            self._entries[name] = Entry(name, config, builder)
        return builder

    def entries(self) -> list[Entry[ConfigT, PartT]]:
        """Return all parts, sorted by name."""
        self.discover()
        return [self._entries[name] for name in sorted(self._entries)]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return [entry.name for entry in self.entries()]

    def entry(self, name: object) -> Entry[ConfigT, PartT]:
        """Return the part called ``name``.

        Raises:
            UnknownPartError: there is no such part.
        """
        if not self._has(name):
            self.discover()
        if not self._has(name):
            raise UnknownPartError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self._entries)}")
        return self._entries[str(name)]

    def build(self, config: ConfigT, *context: object) -> PartT:
        """Build the part that ``config`` describes."""
        name = config.name  # type: ignore[attr-defined]  # _part_name checks that every config has a name
        return self.entry(name).build(config, *context)

    def parse(self, data: object) -> ConfigT:
        """Validate a name or a plain mapping, for example from a saved model, and return the typed config.

        Raises:
            UnknownPartError: the mapping's ``name`` is not registered.
            pydantic.ValidationError: a field is invalid.
        """
        fields = data if isinstance(data, dict) else {"name": data}
        return self.entry(fields.get("name")).config.model_validate(fields, strict=False)

    def discover(self) -> None:
        """Import the package's modules, then the installed plugins. After a successful call, further calls do nothing.

        Raises:
            RegistryError: a plugin cannot be imported.
        """
        if self._discovered:
            return
        self._discovered = True  # set before the imports, because a part may use its registry while it is imported
        try:
            self._import_package()
            self._load_plugins()
        except BaseException:
            self._discovered = False  # the next call must fail again instead of returning an incomplete list
            raise

    def _import_package(self) -> None:
        # In an exported model, the package is one module without `__path__`, and the code imports the model's parts.
        path = getattr(sys.modules.get(self._package or ""), "__path__", ())
        for module in pkgutil.iter_modules(path):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self._package}.{module.name}")

    def _load_plugins(self) -> None:
        if self._entry_point_group is None:
            return
        for point in importlib.metadata.entry_points(group=self._entry_point_group):
            try:
                point.load()
            except RegistryError:
                raise
            except Exception as error:  # third-party code may raise anything
                package = point.dist.name if point.dist else "an installed package"
                raise RegistryError(
                    f"the plugin {point.name!r} of {package} ({point.value}) failed to load: "
                    f"{type(error).__name__}: {error}; fix it or uninstall {package}"
                ) from error

    def _has(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def _config_types(self, builder: Callable[..., Any]) -> list[type[ConfigT]]:
        where = f"{builder.__module__}.{builder.__qualname__}"
        try:
            hints = get_type_hints(builder)
        except (NameError, TypeError, SyntaxError, AttributeError) as error:
            raise RegistryError(f"the annotations of {where} cannot be read: {error}") from error
        hint = hints.get(next(iter(inspect.signature(builder).parameters), ""))
        configs = list(get_args(hint)) if isinstance(hint, UnionType) else [hint]
        for config in configs:
            if not (isinstance(config, type) and issubclass(config, self.config)):
                raise RegistryError(
                    f"{where}: the first argument of a {self.kind} builder must be annotated with a subclass of "
                    f"{self.config.__name__}, not {config!r}"
                )
            missing = sorted(getattr(config, "__abstractmethods__", ()))
            if missing:
                raise RegistryError(f"{config.__module__}.{config.__qualname__} must define {', '.join(missing)}")
        return cast("list[type[ConfigT]]", configs)

    def _part_name(self, config: type[ConfigT]) -> str:
        field = config.model_fields.get("name")
        names = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
        if field is None or len(names) != 1 or field.default != names[0]:
            raise RegistryError(
                f"{config.__module__}.{config.__qualname__} must have the field "
                f'`name: Literal["..."] = "..."` with the same string in both places'
            )
        return str(names[0])

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Any, CoreSchema] = {entry.name: handler.generate_schema(entry.config) for entry in self.entries()}
        self._closed = True
        # An extra member of the union handles bare names, such as `projector: conv`, and values without a registered
        # name. A validator before the union would not work, because it would turn JSON input into Python objects. Where
        # a tuple is expected, strict validation accepts a list in JSON, but rejects a Python list.
        choices[_BY_NAME] = core_schema.no_info_plain_validator_function(self._by_name)
        return core_schema.tagged_union_schema(choices, discriminator=self._tag)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        assert schema["type"] == "tagged-union"
        choices = {name: choice for name, choice in schema["choices"].items() if name != _BY_NAME}
        description = f"Only the name of the {self.kind}. All other fields then have their defaults."
        alone = {"type": "string", "enum": self.names(), "description": description}
        parts = handler(core_schema.tagged_union_schema(choices, discriminator="name"))
        for part in parts["oneOf"]:
            # `name` has a default, so pydantic does not list it as required. But the union needs it to choose a part.
            try:
                fields = handler.resolve_ref_schema(part)
            except LookupError:
                continue  # a part that contains parts of its own kind: its schema is not complete yet
            fields["required"] = sorted({*fields.get("required", ()), "name"})
        return {"anyOf": [alone, parts]}

    def _tag(self, value: object) -> str:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
        return name if isinstance(name, str) and name in self._entries else _BY_NAME

    def _by_name(self, value: object) -> ConfigT:
        """Read ``projector: conv`` as ``projector: {name: conv}``. Reject other values and list the allowed names."""
        if isinstance(value, str) and value in self._entries:
            return self._entries[value].config.model_validate({"name": value})
        if isinstance(value, dict) and value.get("name") is not None:
            value = value["name"]
        elif isinstance(value, dict):
            raise PydanticCustomError(
                "part_name",
                "{kind}: `name` is missing; {hint}",
                {"kind": self.kind, "hint": did_you_mean("", self._entries)},
            )
        raise PydanticCustomError(
            "part_name",
            "unknown {kind} {given}; {hint}",
            {
                "kind": self.kind,
                "given": "null" if value is None else repr(value),
                "hint": did_you_mean(value, self._entries),
            },
        )
