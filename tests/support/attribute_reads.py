"""Find which attributes of which classes the package reads. The package is not run: types come from annotations.

A type is a set of class names. A container has the type of its items, so ``recipe.data.train.values()`` has the type
``SourceConfig``. Reads of attributes of an object of unknown type are not recorded.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Types = frozenset[str]
NOTHING: Types = frozenset()
_PASSES = 2
"""Number of passes over the code. The second pass uses the types that the first pass inferred for attributes."""


@dataclass(frozen=True)
class Read:
    """A read of ``something.attribute``, where ``something`` is an instance of ``cls``."""

    cls: str
    attribute: str
    inside: str
    """The class whose body contains the read. Empty outside of classes."""
    function: str


@dataclass
class _Class:
    bases: list[str]
    attributes: dict[str, Types] = field(default_factory=lambda: defaultdict(lambda: NOTHING))


class AttributeReads:
    """All attribute reads in some source files."""

    def __init__(self, sources: Iterable[str]) -> None:
        trees = [ast.parse(source) for source in sources]
        self._classes: dict[str, _Class] = {}
        self._functions: dict[str, Types] = defaultdict(lambda: NOTHING)
        self._aliases: dict[str, Types] = {}
        self.reads: set[Read] = set()
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    bases = [name for base in node.bases for name in _names(base)]
                    self._classes.setdefault(node.name, _Class([])).bases += bases
        for tree in trees:
            for statement in tree.body:
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                    self._aliases[statement.targets[0].id] = self.annotated(statement.value)
        for tree in trees:
            self._declare(tree.body, None)
        for _ in range(_PASSES):
            self.reads.clear()
            for tree in trees:
                _Scope(self, {}, {}, "", "").run(tree.body)
        self._by_attribute: dict[str, list[Read]] = defaultdict(list)
        for read in self.reads:
            self._by_attribute[read.attribute].append(read)

    @classmethod
    def of_package(cls, folder: Path) -> AttributeReads:
        """Return the reads in all files in a folder and its subfolders."""
        return cls(path.read_text() for path in sorted(folder.rglob("*.py")))

    def is_read(self, names: Iterable[str], attribute: str) -> bool:
        """Return whether an attribute is read. Reads directly in the body, in private methods and in ``tiny()`` of the
        given classes do not count.

        Args:
            names: the class, its base classes that define the attribute, and the subclasses that inherit it.
        """
        names = set(names)
        return any(
            read.cls in names
            and not (read.inside in names and (read.function.startswith("_") or read.function in ("", "tiny")))
            for read in self._by_attribute[attribute]
        )

    def is_class(self, name: str) -> bool:
        """Whether the sources define this class."""
        return name in self._classes

    def returned(self, function: str) -> Types:
        """Return the types that a function returns."""
        return self._functions[function]

    def annotated(self, annotation: ast.expr | None) -> Types:
        """Return all classes in an annotation."""
        found: set[str] = set()
        for name in _names(annotation):
            found |= {name} if name in self._classes else self._aliases.get(name, NOTHING)
        return frozenset(found)

    def attribute(self, types: Types, name: str) -> Types:
        """Return the type of an attribute, or the type that a method returns."""
        return frozenset().union(*(self._attribute(cls, name, set()) for cls in types))

    def _attribute(self, cls: str, name: str, seen: set[str]) -> Types:
        if cls not in self._classes or cls in seen:
            return NOTHING
        known = self._classes[cls]
        found = known.attributes.get(name, NOTHING)
        return found or frozenset().union(*(self._attribute(base, name, seen | {cls}) for base in known.bases))

    def fields(self, types: Types) -> Types:
        """Return the types of all attributes, for ``getattr`` with an unknown name."""
        return frozenset().union(
            *(value for cls in types if cls in self._classes for value in self._classes[cls].attributes.values())
        )

    def assign(self, cls: str, name: str, types: Types) -> None:
        """Add types to an attribute."""
        if cls in self._classes:
            self._classes[cls].attributes[name] |= types

    def _declare(self, body: list[ast.stmt], cls: str | None) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                self._declare(node.body, node.name)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                returns = self.annotated(node.returns)
                if cls is None:
                    self._functions[node.name] |= returns
                else:
                    self.assign(cls, node.name, returns)
            elif isinstance(node, ast.AnnAssign) and cls is not None and isinstance(node.target, ast.Name):
                self.assign(cls, node.target.id, self.annotated(node.annotation))


def _names(node: ast.expr | None) -> Iterator[str]:
    """Yield the single names in an annotation, such as ``a`` and ``B`` for ``a.B``, also those in quotes."""
    for child in ast.walk(node) if node is not None else ():
        if isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Attribute):
            yield child.attr
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            try:
                yield from _names(ast.parse(child.value, mode="eval").body)
            except SyntaxError:
                continue


@dataclass
class _Scope:
    """The body of a function, class or module."""

    index: AttributeReads
    types: dict[str, Types]
    words: dict[str, set[str]]
    """Possible strings of each variable, for ``getattr``."""
    cls: str
    function: str

    def run(self, body: list[ast.stmt]) -> None:
        """Infer types and record reads, statement by statement."""
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.ClassDef():
                _Scope(self.index, dict(self.types), {}, node.name, "").run(node.body)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._function(node)
            case ast.Assign():
                for target in node.targets:
                    self.bind(target, node.value)
            case ast.AnnAssign():
                self.bind_types(node.target, self.index.annotated(node.annotation) | self.of(node.value))
            case ast.For() | ast.AsyncFor():
                self.bind_each(node.target, node.iter)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    types = self.of(item.context_expr)
                    if item.optional_vars is not None:
                        self.bind_types(item.optional_vars, types)
            case _:
                pass
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.Assign | ast.AnnAssign) and child is node.value:
                continue  # the assignment above has already handled the value
            if isinstance(child, ast.expr):
                self.of(child)
            elif isinstance(child, ast.stmt):
                self.statement(child)
            else:  # exception handlers, match cases, items of with
                for inner in ast.iter_child_nodes(child):
                    if isinstance(inner, ast.stmt):
                        self.statement(inner)
                    elif isinstance(inner, ast.expr):
                        self.of(inner)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        inner = dict(self.types)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        for argument in arguments:
            if argument is not None:
                inner[argument.arg] = self.index.annotated(argument.annotation)
        in_class = self.cls and not self.function
        if in_class and node.args.args and node.args.args[0].annotation is None:
            inner[node.args.args[0].arg] = frozenset({self.cls})
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self.of(default)
        function = self.function or node.name
        _Scope(self.index, inner, {}, self.cls, function).run(node.body)

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, its in zip(target.elts, value.elts, strict=True):
                self.bind(one, its)
            return
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            self.words.setdefault(target.id, set()).add(value.value)
        self.bind_types(target, self.of(value))

    def bind_each(self, target: ast.expr, iterable: ast.expr) -> None:
        if isinstance(iterable, ast.Tuple | ast.List | ast.Set):
            for item in iterable.elts:
                self.bind(target, item)
            return
        match target, iterable:
            case ast.Tuple(elts=targets), ast.Call(func=ast.Name(id="zip"), args=values) if len(targets) == len(values):
                for one, its in zip(targets, values, strict=True):
                    self.bind_types(one, self.of(its))
            case _:
                self.bind_types(target, self.of(iterable))

    def bind_types(self, target: ast.expr, types: Types) -> None:
        match target:
            case ast.Name():
                self.types[target.id] = self.types.get(target.id, NOTHING) | types
            case ast.Tuple() | ast.List():
                for one in target.elts:
                    self.bind_types(one, types)
            case ast.Starred():
                self.bind_types(target.value, types)
            case ast.Attribute():
                for cls in self.of(target.value):
                    self.index.assign(cls, target.attr, types)

    def of(self, node: ast.expr | None) -> Types:
        """Return the type of an expression, and record the reads in it."""
        match node:
            case None | ast.Constant():
                return NOTHING
            case ast.Name():
                return self.types.get(node.id, NOTHING)
            case ast.Attribute():
                return self._read(self.of(node.value), node.attr)
            case ast.Call():
                return self._call(node)
            case ast.Lambda():
                names = {argument.arg: NOTHING for argument in node.args.args}
                return _Scope(self.index, self.types | names, self.words, self.cls, self.function).of(node.body)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                inner = _Scope(self.index, dict(self.types), dict(self.words), self.cls, self.function)
                for generator in node.generators:
                    inner.bind_each(generator.target, generator.iter)
                    for condition in generator.ifs:
                        inner.of(condition)
                if isinstance(node, ast.DictComp):
                    inner.of(node.key)
                    return inner.of(node.value)
                return inner.of(node.elt)
            case ast.NamedExpr():
                self.bind(node.target, node.value)
                return self.of(node.value)
            case ast.Compare():
                self._of_all([node.left, *node.comparators])
                return NOTHING
            case _:
                children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
                return self._of_all(children)

    def _of_all(self, nodes: Iterable[ast.expr]) -> Types:
        return frozenset().union(*(self.of(child) for child in nodes))

    def _read(self, types: Types, attribute: str) -> Types:
        self.index.reads |= {Read(cls, attribute, self.cls, self.function) for cls in types}
        return self.index.attribute(types, attribute)

    def _call(self, node: ast.Call) -> Types:
        arguments = self._of_all([*node.args, *(keyword.value for keyword in node.keywords)])
        function = node.func
        if isinstance(function, ast.Attribute):
            owner = self.of(function.value)
            if isinstance(function.value, ast.Name) and self.index.is_class(function.value.id):
                owner = frozenset({function.value.id})
            known = self._read(owner, function.attr)
            # Methods without a known type, such as `.values()` of a mapping or `.model_copy()` of a config, return the
            # type of their object.
            return known or owner
        if not isinstance(function, ast.Name):
            return self.of(function)
        name = function.id
        if name in ("getattr", "hasattr") and len(node.args) > 1:
            return self._getattr(self.of(node.args[0]), node.args[1])
        if name == "isinstance" and isinstance(node.args[0], ast.Name):
            self.bind_types(node.args[0], self.index.annotated(node.args[1]))
            return NOTHING
        if self.index.is_class(name):
            return frozenset({name})
        if name == "cast":
            return self.index.annotated(node.args[0])
        # Builtins such as `sorted`, `zip` and `next` return their arguments' types.
        return self.index.returned(name) or self.types.get(name, NOTHING) or arguments

    def _getattr(self, types: Types, name: ast.expr) -> Types:
        words = {name.value} if isinstance(name, ast.Constant) and isinstance(name.value, str) else set()
        if isinstance(name, ast.Name):
            words |= self.words.get(name.id, set())
        if not words:
            return self.index.fields(types)
        return frozenset().union(*(self._read(types, word) for word in words))
