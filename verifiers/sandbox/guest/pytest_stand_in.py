"""As much of pytest as tests of one program use: `raises`, `approx` and `mark.parametrize`."""

import itertools
import math
import re
import sys
import types


class Fault(BaseException):
    """The tests themselves are wrong, whatever the program is."""


class Raised:
    """Around what must raise; afterwards, what it raised."""

    def __init__(self, expected, match):
        for kind in expected if type(expected) is tuple else (expected,):
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError("not a class of exceptions")
        self.expected, self.pattern = expected, match
        self.type = self.value = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            raise AssertionError("nothing was raised")
        if not issubclass(kind, self.expected):
            return False
        self.type, self.value = kind, error
        if self.pattern is not None:
            self.match(self.pattern)
        return True

    def match(self, pattern):
        if not re.search(pattern, str(self.value)):
            raise AssertionError("the exception says something else")
        return True


def raises(expected, *called, match=None, **named):
    around = Raised(expected, match)
    if not called:
        return around
    with around:
        called[0](*called[1:], **named)
    return around


class Approx:
    """Equal to numbers, and to lists, tuples and dicts of numbers, that are close enough."""

    __hash__ = None

    def __init__(self, expected, rel, abs, nan_ok):
        self.expected, self.rel, self.abs, self.nan_ok = expected, rel, abs, nan_ok

    def __eq__(self, actual):
        return self.close(actual, self.expected)

    def __repr__(self):
        return "approx(%r)" % (self.expected,)

    def close(self, actual, expected):
        if isinstance(expected, dict):
            return (isinstance(actual, dict) and actual.keys() == expected.keys()
                    and all(self.close(actual[key], expected[key]) for key in expected))
        if isinstance(expected, (list, tuple)):
            return (isinstance(actual, (list, tuple)) and len(actual) == len(expected)
                    and all(map(self.close, actual, expected)))
        if actual == expected:
            return True
        try:
            if expected != expected or actual != actual:
                return self.nan_ok and expected != expected and actual != actual
            if math.isinf(abs(expected)) or math.isinf(abs(actual)):
                return False
            return abs(actual - expected) <= max(self.abs, self.rel * abs(expected))
        except TypeError:
            return False


def approx(expected, rel=None, abs=None, nan_ok=False):
    if rel is None:
        rel = 0.0 if abs is not None else 1e-6
    return Approx(expected, rel, 1e-12 if abs is None else abs, nan_ok)


def parametrize(names, rows, **_):
    """Marks a function with the arguments of its runs; several marks multiply."""
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    single = len(names) == 1
    rows = [dict(zip(names, (row,) if single else row)) for row in rows]

    def mark(function):
        before = getattr(function, "__rows__", [{}])
        function.__rows__ = [{**first, **second} for first, second in itertools.product(rows, before)]
        return function

    return mark


class Mark:
    """Other marks, which change nothing here."""

    parametrize = staticmethod(parametrize)

    def __getattr__(self, name):
        return lambda *given, **_: given[0] if given and callable(given[0]) else lambda function: function


def fail(reason="", pytrace=True):
    raise AssertionError(reason)


def absent(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise Fault("the tests use pytest.%s, which the sandbox does not have" % name)


def install():
    module = types.ModuleType("pytest")
    module.__dict__.update(raises=raises, approx=approx, mark=Mark(), fail=fail, __getattr__=absent)
    sys.modules["pytest"] = module
