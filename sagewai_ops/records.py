"""Dataclasses whose methods are generated when the first object of a class is created.

`dataclasses.dataclass` compiles up to six functions for each class, 0.4 ms, and a command imports
some hundred classes, of which it uses a few: that was a third of its start. Here `__init__` is
compiled at the first call, and the other methods are shared. `fields`, `replace` and `asdict` of
`dataclasses` work as with the standard decorator. Not supported, because unused: classes without
slots, `InitVar`, fields that are keyword-only.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

Record = TypeVar("Record")

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, slots: bool, frozen: bool = False, eq: bool = True):
        """Return a decorator that makes a dataclass with slots."""
        assert slots

        def decorate(cls: type) -> type:
            return _decorate(cls, frozen=frozen, eq=eq)

        return decorate


def from_fields(cls: type[Record], source: object, /, **others: Any) -> Record:
    """Return a record with these values, and those of the source for its other fields.

    Raises:
        AttributeError: The source has no attribute with the name of such a field.
    """
    names = [each.name for each in dataclasses.fields(cast("Any", cls)) if each.name not in others]
    return cls(**others, **{name: getattr(source, name) for name in names})


def _decorate(cls: type, *, frozen: bool, eq: bool) -> type:
    own = set(vars(cls))
    cls.__doc__ = cls.__doc__ or cls.__name__  # else it is made from a signature, slowly
    # The standard decorator refuses to mix frozen and other classes in one line of inheritance.
    is_derived = any(dataclasses.is_dataclass(base) for base in cls.__bases__)
    declared: Any = dataclasses.dataclass(
        init=False, repr=False, eq=False, slots=True, frozen=frozen and is_derived
    )(cls)
    declared.__dataclass_params__.frozen = frozen
    methods: dict[str, Any] = {"__init__": _first_init(declared, frozen=frozen), "__repr__": _repr}
    if eq:
        methods["__eq__"] = _eq
        methods["__hash__"] = _hash if frozen else None
    for name, method in methods.items():
        if name not in own:
            setattr(declared, name, method)
    if frozen:
        declared.__setattr__, declared.__delattr__ = _refuse_assignment, _refuse_deletion
    return declared  # type: ignore[no-any-return]


def _first_init(cls: Any, *, frozen: bool) -> Callable[..., None]:
    """Return an `__init__` that replaces itself by a compiled one."""

    def __init__(self: Any, *args: Any, **options: Any) -> None:  # noqa: N807
        cls.__init__ = compiled = _compile_init(cls, frozen=frozen)
        compiled(self, *args, **options)

    return __init__


def _compile_init(cls: Any, *, frozen: bool) -> Callable[..., None]:
    scope: dict[str, Any] = {"_missing": dataclasses.MISSING}
    parameters, body = ["self"], []
    for field in dataclasses.fields(cls):
        name = value = field.name
        default = ""
        if field.default is not dataclasses.MISSING:
            scope[f"_default_{name}"] = field.default
            default = value = f"_default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            scope[f"_factory_{name}"] = field.default_factory
            default, value = "_missing", f"_factory_{name}()"
        elif not field.init:
            continue  # `__post_init__` sets it
        if field.init:
            parameters.append(f"{name}={default}" if default else name)
            value = f"{value} if {name} is _missing else {name}" if default == "_missing" else name
        if frozen:  # the slot's own setter is not refused
            scope[f"_set_{name}"] = getattr(cls, name).__set__
            body.append(f"_set_{name}(self, {value})")
        else:
            body.append(f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    lines = "\n ".join(body or ["pass"])
    # The names are those of a class of this program.
    exec(f"def __init__({', '.join(parameters)}):\n {lines}", scope)  # noqa: S102
    made: Callable[..., None] = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


@cache
def _values(cls: Any) -> Callable[[Any], Any]:
    """Return a function that returns the values of an object which are compared."""
    names = [field.name for field in dataclasses.fields(cls) if field.compare]
    return attrgetter(*names) if names else lambda _object: ()


def _repr(self: Any) -> str:
    shown = (field.name for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(f'{n}={getattr(self, n)!r}' for n in shown)})"


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    values = _values(self.__class__)
    return values(self) == values(other)


def _hash(self: Any) -> int:
    return hash(_values(self.__class__)(self))


def _refuse_assignment(_self: Any, name: str, _value: Any) -> None:
    message = f"cannot assign to field {name!r}"
    raise dataclasses.FrozenInstanceError(message)


def _refuse_deletion(_self: Any, name: str) -> None:
    message = f"cannot delete field {name!r}"
    raise dataclasses.FrozenInstanceError(message)
