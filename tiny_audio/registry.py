"""Names -> (config type, builder). The registry knows no part; parts register themselves.

A part is one file: a config whose ``name`` is a ``Literal``, and a builder that takes it:

    class ConvConfig(ProjectorConfig):
        name: Literal["conv"] = "conv"

    @PROJECTORS.register
    def build_conv(config: ConvConfig, context: ProjectorContext) -> Projector: ...

``Annotated[ProjectorConfig, PROJECTORS]`` in a pydantic model is then the discriminated union of all
that is registered, and closes the registry: a part that came later would be missing from the schema.
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
from typing import Any, Generic, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tiny_audio.config import RegistryError, UserError

ConfigT = TypeVar("ConfigT", bound=BaseModel)
PartT = TypeVar("PartT")
BuilderT = TypeVar("BuilderT", bound=Callable[..., Any])

# Stands in pydantic's error locations where a value names no part; in brackets like pydantic's own "[key]".
_BY_NAME = "[name]"


class UnknownPartError(UserError):
    """A name that nothing is registered under."""


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest allowed name, then all of them.

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
        """Where the builder is defined; the export bundles this module."""
        return self.build.__module__

    @property
    def summary(self) -> str:
        """First line of the config's docstring."""
        return (self.config.__doc__ or "").strip().split("\n")[0]


class Registry(Generic[ConfigT, PartT]):
    """The parts of one kind.

    Args:
        kind: what a part is called in messages, such as ``"projector"``.
        config: base class of the parts' configs.
        package: the package whose modules are imported by :meth:`discover`; ``None`` walks nothing.
        entry_points: the entry point group through which installed packages add parts.
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
            RegistryError: no usable config annotation, a duplicate name, or a registration after the
                recipe schema was built.
        """
        config = self._config_type(builder)
        name = self._part_name(config)
        if self._closed:
            raise RegistryError(
                f"{self.kind} {name!r} of {builder.__module__} was registered after the recipe schema was built; "
                f"import {builder.__module__} before tiny_audio.recipe, or offer it through the entry point group "
                f"{self._entry_point_group!r}"
            )
        if name in self._entries:
            raise RegistryError(
                f"{self.kind} {name!r} is defined twice: in {self._entries[name].module} and in {builder.__module__}; "
                "rename one of them"
            )
        self._entries[name] = Entry(name, config, builder)
        return builder

    def entries(self) -> list[Entry[ConfigT, PartT]]:
        """All parts, by name."""
        self.discover()
        return [self._entries[name] for name in sorted(self._entries)]

    def names(self) -> list[str]:
        """All names, sorted."""
        return [entry.name for entry in self.entries()]

    def entry(self, name: object) -> Entry[ConfigT, PartT]:
        """The part called ``name``.

        Raises:
            UnknownPartError: names the nearest and all that there are.
        """
        if not self._knows(name):
            self.discover()
        if not self._knows(name):
            raise UnknownPartError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self._entries)}")
        return self._entries[str(name)]

    def build(self, config: ConfigT, *context: object) -> PartT:
        """Build the part that ``config`` describes."""
        name = config.name  # type: ignore[attr-defined]  # every registered config has one, see _part_name
        return self.entry(name).build(config, *context)

    def parse(self, data: object) -> ConfigT:
        """The typed config of a plain mapping, such as one read back from a saved model, or of a name alone.

        Raises:
            UnknownPartError: its ``name`` is not registered.
            pydantic.ValidationError: a field does not fit.
        """
        fields = data if isinstance(data, dict) else {"name": data}
        return self.entry(fields.get("name")).config.model_validate(fields, strict=False)

    def discover(self) -> None:
        """Import the package's modules, then the installed plugins; at most once.

        Raises:
            RegistryError: a plugin that does not import, naming its distribution and module.
        """
        if self._discovered:
            return
        self._discovered = True  # at once, since a part may ask its registry while it is imported
        try:
            self._import_package()
            self._load_plugins()
        except BaseException:
            self._discovered = False  # asked again, it must fail again, and not pass for whole
            raise

    def _import_package(self) -> None:
        # A module that is no package is the flat bundle of an export: its parts are imported by name.
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
            except Exception as error:  # whatever a third party's import raises, it must be named
                package = point.dist.name if point.dist else "an installed package"
                raise RegistryError(
                    f"the plugin {point.name!r} of {package} ({point.value}) failed to load: "
                    f"{type(error).__name__}: {error}; fix it or uninstall {package}"
                ) from error

    def _knows(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def _config_type(self, builder: Callable[..., Any]) -> type[ConfigT]:
        where = f"{builder.__module__}.{builder.__qualname__}"
        try:
            hints = get_type_hints(builder)
        except (NameError, TypeError, SyntaxError, AttributeError) as error:
            raise RegistryError(f"the annotations of {where} cannot be read: {error}") from error
        first = next(iter(inspect.signature(builder).parameters), "")
        config = hints.get(first)
        if not (isinstance(config, type) and issubclass(config, self.config)):
            raise RegistryError(
                f"{where}: the first argument of a {self.kind} builder must be annotated with a subclass of "
                f"{self.config.__name__}, not {config!r}"
            )
        missing = sorted(getattr(config, "__abstractmethods__", ()))
        if missing:
            raise RegistryError(f"{config.__module__}.{config.__qualname__} must define {', '.join(missing)}")
        return cast("type[ConfigT]", config)

    def _part_name(self, config: type[ConfigT]) -> str:
        field = config.model_fields.get("name")
        names = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
        if field is None or len(names) != 1 or field.default != names[0]:
            raise RegistryError(
                f"{config.__module__}.{config.__qualname__} must give its name once, as "
                f'`name: Literal["..."] = "..."` with one and the same string'
            )
        return str(names[0])

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Any, CoreSchema] = {entry.name: handler.generate_schema(entry.config) for entry in self.entries()}
        self._closed = True
        # A validator in front of the union would hand it Python objects, for which strict means another thing than for
        # JSON: it would refuse every list that stands for a tuple. So what has no part is a choice of its own.
        choices[_BY_NAME] = core_schema.no_info_plain_validator_function(self._by_name)
        return core_schema.tagged_union_schema(choices, discriminator=self._tag)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        assert schema["type"] == "tagged-union"
        choices = {name: choice for name, choice in schema["choices"].items() if name != _BY_NAME}
        alone = {"type": "string", "enum": self.names(), "description": f"Name of the {self.kind}, with its defaults."}
        parts = handler(core_schema.tagged_union_schema(choices, discriminator="name"))
        for part in parts["oneOf"]:
            # With its default, the name would look optional; it is what tells the parts apart.
            try:
                fields = handler.resolve_ref_schema(part)
            except LookupError:
                continue  # a part that holds parts of its own kind: its schema is being made, further out
            fields["required"] = sorted({*fields.get("required", ()), "name"})
        return {"anyOf": [alone, parts]}

    def _tag(self, value: object) -> str:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
        return name if isinstance(name, str) and name in self._entries else _BY_NAME

    def _by_name(self, value: object) -> ConfigT:
        """``projector: conv`` is short for ``projector: {name: conv}``; a bad name is refused with the nearest."""
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
