"""The recipe of a training run: its schema, and how it is read from YAML and the command line."""

from typing import TYPE_CHECKING

from hmt_ds import lazy_imports

if TYPE_CHECKING:
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.config.load import load_recipe
    from hmt_ds.config.recipe import Recipe
else:
    __getattr__ = lazy_imports(__file__)

__all__ = ["ConfigError", "Recipe", "load_recipe"]
