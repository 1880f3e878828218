"""Collect the problems of a recipe, so that all of them are reported at once."""

from collections.abc import Callable
from typing import TypeVar

from hmt_ds.backbones import BackboneError
from hmt_ds.data import DataError
from hmt_ds.parallel.deepspeed_config.fill import DeepSpeedConfigError
from hmt_ds.parallel.deepspeed_config.lr_schedule import ScheduleError
from hmt_ds.parallel.deepspeed_config.optimizer import OptimizerError

T = TypeVar("T")
INPUT_ERRORS = (BackboneError, DataError, DeepSpeedConfigError, OptimizerError, ScheduleError)


class Problems(list[str]):
    """A list of error lines about a recipe, collected to be reported together."""

    def attempt(self, action: Callable[[], T], prefix: str = "") -> T | None:
        """Return the result of a function; if it raises an error about the user's input, append the error's lines
        instead.

        Args:
            action: function without arguments.
            prefix: text in front of each line of an error, such as ``deepspeed: ``.

        Returns:
            The result; None after an error of the user's input. Other exceptions are passed on.
        """
        try:
            return action()
        except INPUT_ERRORS as error:
            self.extend(prefix + line for line in str(error).splitlines())
            return None
