"""The recipe as JSON schema, with which editors complete keys, show help texts and underline wrong values."""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from hmt_ds.config.recipe import Recipe

SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")


class _Untitled(GenerateJsonSchema):
    """Pydantic's generator without titles, which would repeat each key in other words."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> str:
    """Return the JSON schema of a recipe (draft 2020-12) as text; ``recipe.schema.json`` holds the same text.

    Ranges, choices, defaults and help texts are those of :class:`Recipe`. Conditions between keys are not part of it:
    ``hmt-ds check`` tells these.
    """
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(schema_generator=_Untitled),
    }
    return json.dumps(_joined(schema), indent=1, ensure_ascii=False) + "\n"


def editor_line(schema: str | Path) -> str:
    """Return the first line of a recipe that names its JSON schema to editors with a YAML language server.

    Args:
        schema: path of the schema, absolute or relative to the recipe.
    """
    return f"# yaml-language-server: $schema={schema}"


def _joined(value: Any) -> Any:
    """Return a schema whose help texts are one line each."""
    if isinstance(value, dict):
        joined = {key: _joined(one) for key, one in value.items()}
        if isinstance(text := joined.get("description"), str):
            joined["description"] = " ".join(text.split())
        return joined
    return [_joined(one) for one in value] if isinstance(value, list) else value
