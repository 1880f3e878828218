"""Derive sections of the recipe from the settings dataclasses of other rooms."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=())


def section(**narrowed: Any) -> Callable[[type[T]], type[T]]:
    """Make a section of a subclass of a settings dataclass, whose fields, defaults and help texts it inherits.

    An instance is still an instance of the settings class, so rooms above the configuration take it as it is.

    Args:
        narrowed: types with ranges for some of the fields. pydantic is not imported where the settings are declared.
    """

    def decorate(cls: type[T]) -> type[T]:
        types, texts = get_type_hints(cls) | narrowed, attribute_docstrings(cls.__mro__[1])
        cls.__annotations__ = {
            field.name: Annotated[types[field.name], Field(description=texts.get(field.name))]
            for field in fields(cls)  # type: ignore[arg-type]
        }
        return dataclass(cls, frozen=True, config=STRICT)  # type: ignore[return-value]

    return decorate


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Return the string below each annotated attribute of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        attribute.target.id: inspect.cleandoc(str(text.value.value))
        for attribute, text in pairwise(body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def fields_of(kind: Any) -> dict[str, Any]:
    """Return the pydantic fields of a section by name; empty for any other type."""
    return getattr(kind, "__pydantic_fields__", {})
