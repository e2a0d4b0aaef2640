"""Checks that go on after a fault, so that one message names everything that is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager


class SeveralFaultsError(ValueError):
    """Faults that were found together, each in a line of its own; `args` are their messages."""

    def __str__(self) -> str:
        return "\n".join(" ".join(str(fault).splitlines()) for fault in self.args)


class Faults:
    """Collects the ValueErrors of one check after the other."""

    def __init__(self) -> None:
        """Begin without a fault."""
        self._errors: list[ValueError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the ValueError that ends the block, and go on behind it."""
        try:
            yield
        except ValueError as error:
            self._errors.append(error)

    def raise_any(self) -> None:
        """Do nothing where no fault was noted.

        Raises:
            ValueError: the one fault that was noted, as it was, or SeveralFaultsError.
        """
        found = [error.args if isinstance(error, SeveralFaultsError) else (str(error),) for error in self._errors]
        # Two rewards may lack the same file.
        messages = dict.fromkeys(message for each in found for message in each)
        if len(messages) > 1:
            raise SeveralFaultsError(*messages)
        if messages:
            raise self._errors[0]
