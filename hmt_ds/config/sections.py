"""Build sections of the recipe from settings dataclasses of other packages, and iterate over their keys."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from hmt_ds.config.value_checks import expand_path

T = TypeVar("T")
PathText = Annotated[str, AfterValidator(expand_path)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=())


class Section(BaseModel):
    """Base class of the recipe's sections: unknown keys are errors, and a field's docstring is its help text."""

    model_config = ConfigDict(**STRICT, frozen=True)


def section(**ranges: Any) -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes a pydantic section of the recipe from a subclass of a settings dataclass.

    Fields, defaults and help texts are inherited. Instances are also instances of the settings class, so the packages
    that use the settings accept them.

    Args:
        ranges: narrower types of fields, by field name, such as ``PositiveInt``. The settings dataclasses are plain
            Python without ranges, so that their packages do not depend on pydantic.
    """

    def decorate(cls: type[T]) -> type[T]:
        types, texts = get_type_hints(cls) | ranges, attribute_docstrings(cls.__mro__[1])
        # a field that is annotated again without a value keeps its default and its place
        cls.__annotations__ = {
            field.name: Annotated[types[field.name], Field(description=texts.get(field.name))]
            for field in fields(cls)  # type: ignore[arg-type]
        }
        return dataclass(cls, frozen=True, config=STRICT)  # type: ignore[return-value]

    return decorate


def attribute_docstrings(cls: type) -> dict[str, str]:
    """Return the docstring below each annotated attribute of a class, by the attribute's name.

    Args:
        cls: the class, whose source code is read.
    """
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        attribute.target.id: inspect.cleandoc(str(text.value.value))
        for attribute, text in pairwise(body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def fields_of(kind: object) -> dict[str, FieldInfo]:
    """Return the pydantic fields of a model or dataclass by name; an empty dict for any other type.

    Args:
        kind: the type.
    """
    return getattr(kind, "__pydantic_fields__", {})


def keys(kind: object, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield dotted name and pydantic field of every key of a section, including those of nested sections.

    Args:
        kind: the section's class, such as ``Recipe``.
        prefix: text in front of every name, such as ``training.``.
    """
    for name, field in fields_of(kind).items():
        yield prefix + name, field
        for inner in (field.annotation, *get_args(field.annotation)):
            yield from keys(inner, f"{prefix}{name}.")
