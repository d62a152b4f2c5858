"""Records against the dataclasses of the standard library, of which they are the fast form."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from sagewai_ops import records

_BOTH = [dataclasses.dataclass, records.dataclass]


def _make(dataclass: Any, *, frozen: bool) -> Any:
    """Return a class with every kind of field that the program uses."""

    @dataclass(frozen=frozen, slots=True)
    class Made:
        name: str
        count: int = 1
        items: list[int] = dataclasses.field(default_factory=list)
        secret: str = dataclasses.field(default="", repr=False)
        note: str = dataclasses.field(default="", compare=False)
        total: int = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "total", self.count + len(self.items))

    return Made


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    "act",
    [
        lambda made: repr(made("a", secret="hidden")),
        lambda made: dataclasses.asdict(made("a", 2, [3])),
        lambda made: dataclasses.asdict(dataclasses.replace(made("a"), count=5)),
        lambda made: [(f.name, f.default, f.init, f.repr) for f in dataclasses.fields(made)],
        lambda made: made("a") == made("a", note="other"),
        lambda made: made("a") == made("b"),
        lambda made: made("a") == ("a",),
        lambda made: made("a").items is made("a").items,
        lambda made: made.__match_args__,
        lambda made: made.__doc__ is None,
        lambda made: made(),
        lambda made: made("a", 1, [], "", "", 7),
        lambda made: made("a", other=1),
        lambda made: hash(made("a")),
        lambda made: setattr(made("a"), "name", "b"),
        lambda made: delattr(made("a"), "name"),
    ],
)
def test_a_record_behaves_as_the_standard_dataclass(
    act: Callable[[Any], Any], *, frozen: bool
) -> None:
    """Values are equal, errors of the same kind, in the first call and in later ones."""

    def outcome(dataclass: Any) -> list[Any]:
        made = _make(dataclass, frozen=frozen)
        found: list[Any] = []
        for _ in range(2):
            try:
                found.append(act(made))
            except (TypeError, AttributeError) as error:
                is_frozen = isinstance(error, dataclasses.FrozenInstanceError)
                found.append("frozen" if is_frozen else "refused")
        return found

    expected, found = map(outcome, _BOTH)
    assert found == expected


def test_equal_records_have_equal_hashes() -> None:
    """A list as a value has no hash, in either form."""

    @records.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int

    @records.dataclass(frozen=True, slots=True)
    class Nothing:
        pass

    assert len({Point(1, 2), Point(1, 2), Point(2, 1)}) == 2
    assert {Nothing(), Nothing()} == {Nothing()}


def test_a_derived_record_has_the_fields_of_both() -> None:
    """Results extend the facts that they report."""

    @records.dataclass(frozen=True, slots=True)
    class Fact:
        name: str
        count: int = 0

    @records.dataclass(frozen=True, slots=True)
    class Result(Fact):
        text: str = "x"

    assert dataclasses.asdict(Result("a", 1)) == {"name": "a", "count": 1, "text": "x"}
    assert Fact("a") != Result("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Result("a").count = 2  # type: ignore[misc]


def test_methods_of_the_class_are_kept() -> None:
    """As `RemotePath` has an equality of its own."""

    @records.dataclass(frozen=True, slots=True)
    class Own:
        name: str

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    @records.dataclass(frozen=True, slots=True, eq=False)
    class Identity:
        name: str

    assert Own("a") == Own("b")
    assert hash(Own("a")) == 7
    assert Identity("a") != Identity("a")
    assert len({Identity("a"), Identity("a")}) == 2
