"""The recipe as JSON schema: editors use it to complete keys, show help texts and mark wrong values."""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from hmt_ds.config.recipe import Recipe

SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")


class _Untitled(GenerateJsonSchema):
    """Generate a JSON schema without titles, which would only repeat each key in other words."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> str:
    """Return the JSON schema of a recipe (draft 2020-12) as text; ``recipe.schema.json`` has the same content.

    It has the types, ranges, choices, defaults and help texts of all keys, but no conditions between keys: ``hmt-ds
    check`` reports these.
    """
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(schema_generator=_Untitled),
    }
    return json.dumps(_joined(schema), indent=1, ensure_ascii=False) + "\n"


def editor_line(schema: str | Path) -> str:
    """Return the comment, for a recipe's first line, that tells editors with a YAML language server its JSON schema."""
    return f"# yaml-language-server: $schema={schema}"


def _joined(value: Any) -> Any:
    """Return a JSON schema with each description joined into one line."""
    if isinstance(value, dict):
        joined = {key: _joined(one) for key, one in value.items()}
        if isinstance(text := joined.get("description"), str):
            joined["description"] = " ".join(text.split())
        return joined
    return [_joined(one) for one in value] if isinstance(value, list) else value
