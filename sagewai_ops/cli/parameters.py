"""The parameters of a command's function, as options that Typer registers."""

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import OptionInfo

from sagewai_ops.cli.variables import Variables, variables_of


def as_parameters(options: Mapping[str, tuple[Any, Any]]) -> list[inspect.Parameter]:
    """Return the parameters of options: annotation and default by name."""
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in options.items()
    ]


def expand_groups(function: Callable[..., Any]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Return the options of a command's function, without its first parameter, the run.

    Returns:
        The parameters, and the `NamedTuple` of each that is several options, one a field.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        kind = parameter.annotation
        if not hasattr(kind, "_fields"):
            parameters.append(parameter)
            continue
        groups[parameter.name] = kind
        defaults = kind._field_defaults
        parameters += as_parameters(
            {name: (kind.__annotations__[name], defaults[name]) for name in kind._fields}
        )
    return parameters, groups


def group_options(options: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command's function: options, and the groups that it takes."""
    single = dict(options)
    grouped = {
        parameter: kind(**{name: single.pop(name) for name in kind._fields})
        for parameter, kind in groups.items()
    }
    return {**grouped, **single}


def complete(
    parameter: inspect.Parameter, command: str, variables: list[Variables] | None
) -> inspect.Parameter:
    """Return a parameter whose option knows its variables and refuses an empty path.

    An empty path is `"$UNSET"` in a script, and would mean the working directory.

    Args:
        command: As typed; "" for a global option.
        variables: Where the option's are added; None for an option without.
    """
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, option = get_args(parameter.annotation)
    option = copy.copy(option)  # several commands share it
    if _takes_paths(parameter.annotation):
        option.parser = _refusing_empty(option.parser or Path)
    # In an annotation, Typer takes the first flag for the default until it builds the option.
    declared = [option.default, *(option.param_decls or ())]
    flags = [flag for flag in declared if isinstance(flag, str) and flag.startswith("--")]
    if isinstance(option, OptionInfo) and flags and variables is not None:
        found = variables_of(command, parameter.name, flags)
        variables.append(found)
        option.envvar = found.names or None
    return parameter.replace(annotation=Annotated[kind, option])


def _takes_paths(annotation: Any) -> bool:
    """Return whether an option's value, or each of them, is a path."""
    return annotation is Path or any(map(_takes_paths, get_args(annotation)))


def _refusing_empty(parse: Callable[[str], Path]) -> Callable[[str], Path]:
    def path(text: str) -> Path:  # a function: the lowest Click asks the parser for its name
        if not text:
            raise typer.BadParameter("is empty")
        return parse(text)

    return path
