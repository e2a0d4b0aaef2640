"""Faults that are told together."""

import pickle

import pytest

from pipeline.faults import Faults, SeveralFaultsError


def faults_of(*errors: ValueError) -> Faults:
    faults = Faults()
    for error in errors:
        with faults.noted():
            raise error
    return faults


def test_without_a_fault_nothing_is_raised() -> None:
    faults = Faults()
    with faults.noted():
        pass
    assert faults.raise_any() is None


def test_a_single_fault_is_raised_as_it_was() -> None:
    error = ValueError("two\nlines")
    with pytest.raises(ValueError, match="two") as caught:
        faults_of(error, ValueError("two\nlines")).raise_any()
    assert caught.value is error


def test_several_faults_are_told_in_a_line_each_and_once() -> None:
    with pytest.raises(SeveralFaultsError) as inner:
        faults_of(ValueError("first"), ValueError("second\nand more")).raise_any()
    with pytest.raises(SeveralFaultsError) as outer:
        faults_of(inner.value, ValueError("third"), ValueError("first")).raise_any()
    assert str(outer.value) == "first\nsecond and more\nthird"
    assert str(pickle.loads(pickle.dumps(outer.value))) == str(outer.value), "actors send it to the driver"


def test_other_errors_are_not_held_back() -> None:
    faults = Faults()
    with pytest.raises(OSError, match="disk"), faults.noted():
        raise OSError("disk")
