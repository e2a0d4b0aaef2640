"""Errors that leave a process without secrets: Ray writes them into logs of its own."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.secrets import redact

PARTS = ("strerror", "filename", "filename2", "msg", "text")
"""What the texts of `OSError` and `SyntaxError` are made of where they have them, whatever their arguments are."""


@contextmanager
def errors_without_secrets() -> Iterator[None]:
    """Errors leave this block, or the plain function that this decorates, redacted, and so do those behind them.

    For what runs in a process of Ray's, which hands errors on to processes that do not know the secrets of this one's
    environment. An error keeps its class and its numbers; only where its text is out of reach does a `RuntimeError`
    with the redacted text take its place.
    """
    try:
        yield
    except Exception as error:
        clean = _clean(error, set())
        if clean is error:
            raise
        raise clean from clean.__cause__


def _clean(error: BaseException, seen: set[int]) -> BaseException:
    """`error` itself, redacted in place, or what stands in for it."""
    if id(error) in seen:
        return error
    seen.add(id(error))
    for inner in _errors_in([error.args, vars(error), getattr(error, "exceptions", ())]):
        _clean(inner, seen)
    error.args = _redacted(error.args)
    # Not by assignment, which a class may forbid.
    vars(error).update({name: _redacted(value) for name, value in vars(error).items()})
    if isinstance(error, OSError | SyntaxError):
        for name in PARTS:
            if isinstance(part := getattr(error, name, None), str):
                setattr(error, name, redact(part))
    behind = error.__cause__ or error.__context__
    cause = None if behind is None else _clean(behind, seen)
    text = str(error)
    if redact(text) != text:
        error = RuntimeError(redact(f"{type(error).__name__}: {text}")).with_traceback(error.__traceback__)
        error.__cause__ = cause
    elif cause is not behind:
        error.__cause__ = cause
    return error


def _redacted(value: Any) -> Any:
    """`value` of the same kind, with every string in plain containers redacted."""
    if isinstance(value, str):
        return redact(value)
    if type(value) in (list, tuple):
        return type(value)(_redacted(item) for item in value)
    if type(value) is dict:
        return {key: _redacted(item) for key, item in value.items()}
    return value


def _errors_in(values: Iterable[Any]) -> Iterator[BaseException]:
    for value in values:
        if isinstance(value, BaseException):
            yield value
        elif type(value) in (list, tuple):
            yield from _errors_in(value)
        elif type(value) is dict:
            yield from _errors_in(value.values())
