"""The judge's side: runs tests whose functions live in another instance.

A name that the tests use and that neither they, their prelude nor Python define is a name of the
program. It becomes a `Remote`, which asks the program through the host. Only plain data comes
back, so every comparison is made here, by an interpreter that the program has never touched.

Request: `{"tests": source, "prelude": source, "entry": name | null, "partial": bool,
"fresh": bool, "inside": bool}`; reply: `{"passed": int, "total": int, "failed": [line, why] | null,
"error": text | null, "fault": text | null, "functions": text | null, "keep": bool}`. `total` counts
assertion statements, the rows of literal tables each, and is the same whatever the program does,
but for assertions under conditions. `failed` is the first that failed; `error` ended tests early and
is the program's doing, `fault` is the tests' own, `functions` says that the tests pass the program
something that cannot be sent, `keep` whether this instance may run other tests.
"""

import ast
import asyncio
import builtins
import collections
import dataclasses
import decimal
import importlib
import inspect
import json
import queue
import random
import statistics
import sys
import unittest

import pytest_stand_in
import values
from program import describe, first_line
from pytest_stand_in import Fault
from remote import Derived, Remote, derived
from suite import Suite

KEPT = 128
_CHANGED = frozenset({list, dict, set, bytearray, collections.deque, *values.MAPPINGS})
# Exceptions of the standard library that tests name; a program's of that name is one of them.
_LIBRARY = {
    kind.__name__: kind
    for kind in (
        asyncio.QueueEmpty, asyncio.QueueFull, dataclasses.FrozenInstanceError, decimal.DivisionByZero,
        decimal.InvalidOperation, json.JSONDecodeError, queue.Empty, queue.Full, statistics.StatisticsError,
    )
}

# Methods of built-in types that are given what the tests expect.
_EXPECTING = frozenset(
    "startswith endswith issubset issuperset isdisjoint difference symmetric_difference".split()
)

pytest_stand_in.install()


class Gone(BaseException):
    """The program's instance is dead: a limit was met."""


class Unreadable(BaseException):
    """The program's answer is none: no exception that tests could mean to catch."""


class Foreign(BaseException):
    """The tests hand the program what cannot be sent to it."""


class Stop(BaseException):
    """The first failure, where one is enough."""


class Names(dict):
    """The tests' globals: what they lack is looked for in the program."""

    # Set once the prelude has run, which may not ask the program for anything.
    judge = None
    # Names that the tests bind themselves, if not yet.
    bound = frozenset()

    def __missing__(self, name):
        if self.judge is None or name.startswith("__") or name in self.bound or hasattr(builtins, name):
            raise KeyError(name)
        value = self.judge.name(name)
        if isinstance(value, Remote):
            self[name] = value
        return value


class Whole:
    """The program as a module that the tests import."""

    def __init__(self, judge):
        self._judge = judge

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._judge.name(name)


class Assert:
    """Around one run of an assertion: notes what became of it."""

    __slots__ = ("judge", "number", "guarded")

    def __init__(self, judge, number, guarded):
        self.judge, self.number, self.guarded = judge, number, guarded

    def __enter__(self):
        judge = self.judge
        judge.asserting += 1
        judge.runs += 1
        if judge.fresh:
            judge.renew()

    def __exit__(self, kind, error, trace):
        judge = self.judge
        judge.asserting -= 1
        if kind is None:
            judge.met[self.number] += 1
            return False
        if kind is not Unreadable and not issubclass(kind, Exception):
            return False
        if self.guarded:
            # The tests may mean to catch it; if nothing does, it is this assertion that failed.
            judge.uncaught = (error, self.number)
            return False
        judge.fail(self.number, judge.why(error))
        if not judge.partial:
            raise Stop() from None
        return True


def protected():
    """The containers that belong to modules and their classes, by identity."""
    modules = [module for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    holders = modules + [it for module in modules for it in vars(module).values() if isinstance(it, type)]
    waiting = [item for holder in holders for item in vars(holder).values()]
    found = {}
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if issubclass(kind, values.MUTABLE) and id(item) not in found:
            # It is kept, so that no other object ever has its identity.
            found[id(item)] = item
            if issubclass(kind, dict):
                waiting += list(dict.values(item))
            elif kind is not bytearray:
                waiting += list(item)
    return found


class Judge:
    """Runs tests; one per instance, used again and again."""

    def __init__(self, ask):
        self.send = ask
        self.reader = values.Reader(self.handle, trusted=False, derived=self.derived)
        self.kept = {}
        self.protected = {}
        self.start(False, False)

    def start(self, partial, fresh):
        self.partial, self.fresh = partial, fresh
        self.remotes, self.exceptions = {}, {}
        self.statements, self.met, self.missed = [], [], []
        self.failed = self.error = self.gone = self.foreign_why = self.uncaught = None
        # How many assertions are being run, one within the other, and how many have been.
        self.asserting = self.runs = 0
        # How many calls were made, and whether the one at hand makes an object.
        self.calls, self.making = 0, False

    # What crosses.

    def handle(self, number, kind):
        remote = self.remotes.get(number)
        if remote is None:
            if type(number) is not int:
                raise ValueError("no handle")
            remote = self.remotes[number] = Remote(self, number, str(kind)[:values.TEXT])
        else:
            remote._answer()
        return remote

    def derived(self, number, kind, plain):
        return derived(self.handle(number, kind), plain, self.making)

    def moment(self):
        """Which run of an assertion this is, else None."""
        return self.runs if self.asserting else None

    @staticmethod
    def unreadable(why):
        return Unreadable(why)

    def writer(self, own):
        """Writes for the program; what it cannot send is the tests' doing where they name the receiver."""
        return values.Writer(self.number_or_foreign if own else self.number)

    def number(self, value):
        if isinstance(value, Remote):
            return value._target
        if isinstance(value, Derived):
            return value._remote._target
        if isinstance(value, type) and value in self.exceptions.values():
            return value.__name__
        raise TypeError("a value of type %s cannot be passed to the program" % values.type_name(type(value)))

    def number_or_foreign(self, value):
        try:
            return self.number(value)
        except TypeError:
            if isinstance(value, BaseException):
                raise
            raise self.foreign(
                "the tests pass the program a value of type %s" % values.type_name(type(value))) from None

    def foreign(self, why):
        self.foreign_why = self.foreign_why or why
        return Foreign(why)

    def ask(self, request):
        """The program's reply to a request, "ok" and what follows it; other replies raise."""
        try:
            reply = values.from_json(self.send(values.to_json(request)))
            what, said = reply[0], reply[1]
            if what == "ok":
                return reply
            if what == "raise":
                error = self.exception(reply[1], reply[2], str(reply[3]), str(reply[4]))
        except Exception as error:
            raise Unreadable("the program's reply cannot be read: " + first_line(describe(error)))
        if what == "raise":
            # Out of a generator or a loop of the tests it would end that loop and no more.
            if isinstance(error, (StopIteration, StopAsyncIteration)) and request[0:3:2] != ["op", "next"]:
                error = self.exception(["RuntimeError"], "RuntimeError", str(error), error.__tallow__)
            raise error
        if what == "large":
            raise Unreadable("the result cannot be compared: " + first_line(str(said)))
        self.gone = first_line(str(said)) or "the program does not answer"
        raise Gone(self.gone)

    def received(self, value):
        try:
            return self.reader.read(value)
        except Exception as error:
            raise Unreadable("the result cannot be read: " + first_line(str(error)))

    def exception(self, own, base, text, described):
        kind = self.exception_class(own, base)
        args = (text,) if text else ()
        if kind is KeyError and text:
            # Its text is the key as Python writes it.
            try:
                args = (ast.literal_eval(text),)
            except Exception:
                pass
        try:
            error = kind(*args)
        except Exception:
            error = RuntimeError(*args)
        error.__tallow__ = first_line(described)
        return error

    def exception_class(self, own, base):
        """The class here of a program's own class of exceptions: one of that name and those bases."""
        builtin = getattr(builtins, base, None)
        if not (isinstance(builtin, type) and issubclass(builtin, Exception)):
            builtin = RuntimeError
        kind = builtin
        for name in reversed(own[:50]):
            name = str(name)[:values.TEXT]
            if name == base:
                continue
            known = self.exceptions.get(name)
            if known is None:
                bases = (kind,)
                library = _LIBRARY.get(name)
                if library is not None and not issubclass(kind, library):
                    bases = (library,) if issubclass(library, kind) else (kind, library)
                space = {"__module__": "__main__", "__init__": lambda self, *args: None, "__str__": Exception.__str__}
                known = self.exceptions[name] = type(name, bases, space)
            kind = known
        return kind

    def call(self, target, args, named, own, making=False):
        writer = self.writer(own)
        back = not self.asserting
        self.calls += 1
        reply = self.ask(["call", target, writer.write(args, 0), writer.write(named, 0), back])
        if len(reply) == 3 and (back or reply[1] is None):
            self.copy_back(args, named, reply[2])
        self.making = making
        try:
            return self.received(reply[1])
        finally:
            self.making = False

    def copy_back(self, args, named, after):
        """A call may have worked in place: its arguments then change here as they did there."""
        if type(after) is not list or len(after) != 2:
            return
        after_args, after_named = self.received(after[0]), self.received(after[1])
        if type(after_args) is tuple and len(after_args) == len(args):
            for mine, theirs in zip(args, after_args):
                self.change(mine, theirs)
        if type(after_named) is dict and after_named.keys() == named.keys():
            for name, mine in named.items():
                self.change(mine, after_named[name])

    def change(self, mine, theirs):
        """What stands for `theirs` afterwards: the tests' own container, changed, where it is of that type."""
        kind = type(mine)
        if kind is not type(theirs) or kind not in _CHANGED or id(mine) in self.protected:
            return theirs
        if kind is list:
            mine[:] = [*map(self.change, mine, theirs), *theirs[len(mine):]]
        elif kind is bytearray:
            mine[:] = theirs
        elif kind is collections.deque:
            mine.clear()
            mine.extend(theirs)
        elif kind is set:
            mine.clear()
            mine.update(theirs)
        else:
            new = {key: self.change(mine[key], item) if key in mine else item for key, item in theirs.items()}
            mine.clear()
            mine.update(new)
        return mine

    def operation(self, remote, what, given):
        writer = self.writer(remote._own)
        asked = ["op", remote._target, what, *[writer.write(value, 0) for value in given]]
        return self.received(self.ask(asked)[1])

    def attribute(self, remote, name):
        value = self.ask(["attr", remote._target, name])[1]
        found = self.found_class(value) or self.received(value)
        target = remote._target
        if isinstance(found, Remote) and name in _EXPECTING and not remote._made:
            raise AttributeError("%s of the program's own object would be told what is expected" % name)
        if isinstance(found, Remote) and (remote._made or type(target) is str and target[:1].isupper()):
            # A method of what the tests made: what they pass it is their choice.
            object.__setattr__(found, "_own", True)
        return found

    def found_class(self, value):
        """The class here of a class of exceptions that the program names, else None."""
        if type(value) is list and len(value) == 3 and value[0] == "e" and type(value[1]) is list:
            return self.exception_class(value[1], str(value[2]))
        return None

    def name(self, name):
        """What a global of the program is, to the tests."""
        try:
            value = self.ask(["name", name])[1]
        except NameError:
            raise NameError("the program does not define %s" % name) from None
        found = self.found_class(value)
        if found is not None:
            # Under another name a built-in class would catch what the tests themselves raise.
            alias = not value[1] and str(value[2]) != name
            return self.exception_class([name], str(value[2])) if alias else found
        # By name, not by handle: the tests then see it when the program changes it. What is Python's
        # own stays there too: it is the program that the tests call.
        if type(value) is list and value[0] in ("h", "y"):
            return Remote(self, name, "function", own=True)
        return self.received(value)

    # The tests.

    def renew(self):
        self.send('["fresh"]')
        self.remotes = {}

    def fail(self, number, why):
        self.missed[number] += 1
        if self.failed is None:
            self.failed = [self.statements[number].line, why]

    def why(self, error):
        text = getattr(error, "__tallow__", None)
        if type(text) is str:
            return text
        if isinstance(error, (AssertionError, Unreadable)):
            try:
                return first_line(str(error)) or "the assertion is false"
            except Exception:
                return "the assertion is false"
        return first_line(describe(error))

    def prepared(self, prelude, tests):
        key = (prelude, tests)
        found = self.kept.get(key)
        if found is None:
            if len(self.kept) >= KEPT:
                self.kept.clear()
            found = self.kept[key] = Suite(prelude, tests)
        return found

    def check(self, request, program):
        reply = {"passed": 0, "total": 0, **dict.fromkeys(("failed", "error", "fault", "functions")), "keep": False}
        inside = request["inside"]
        self.start(request["partial"], request["fresh"] and not inside)
        try:
            suite = self.prepared(request["prelude"], request["tests"])
        except Exception as error:
            reply["fault"] = first_line(describe(error))
            return values.to_json(reply)
        reply["keep"] = suite.pure and not inside
        if suite.fault is not None:
            reply["fault"] = first_line(suite.fault)
            return values.to_json(reply)
        if suite.evaluates and not inside:
            reply["functions"] = "the tests evaluate what the program returns"
            return values.to_json(reply)
        self.statements = suite.statements
        self.met, self.missed = [0] * len(suite.statements), [0] * len(suite.statements)
        random.seed(0)
        try:
            self.run(suite, request["entry"] or suite.shadow, program if inside else None)
        except (Stop, Gone, Foreign):
            pass
        except Fault as fault:
            reply["fault"] = first_line(str(fault))
        except BaseException as error:
            self.error = self.error or self.why(error)
        # These hold even where a bare `except` of the tests took them for something else.
        reply["functions"] = self.foreign_why
        reply["error"] = self.gone or self.error
        reply["failed"] = self.failed
        self.count(reply)
        self.start(False, False)
        return values.to_json(reply)

    def count(self, reply):
        """How many assertions there are and how many were met."""
        unreached = None
        for it, met, missed in zip(self.statements, self.met, self.missed):
            # Where the tests broke off, nobody knows what else they would have reached.
            if not (it.must or met or missed or reply["error"] and it.possible):
                continue
            reply["total"] += it.rows
            reply["passed"] += min(met, max(0, it.rows - missed))
            if met + missed < it.rows and unreached is None:
                unreached = [it.line, "the assertion was never reached"]
        if reply["failed"] is None and reply["error"] is None:
            reply["failed"] = unreached
            if reply["total"] == 0:
                reply["error"] = "none of the tests' assertions was met"
        if reply["failed"] or reply["error"]:
            reply["total"] = max(reply["total"], reply["passed"] + 1)

    def run(self, suite, entry, program):
        if program is not None:
            names = dict(program.names)
            candidate = names.get(entry)
            names["__program__"] = sys.modules.get("__main__")
        else:
            names = Names()
            candidate = None
            names["__program__"] = Whole(self)
        names["__name__"] = "__main__"
        names["__builtins__"] = builtins
        names["__assert__"] = lambda number, guarded: Assert(self, number, guarded)
        try:
            if program is None:
                exec(suite.before, names)
                names.judge, names.bound = self, suite.bound
            for module in suite.modules:
                names.setdefault(module, importlib.import_module(module))
            if suite.asks or entry:
                for name, module in suite.known.items():
                    if name != entry and program is None:
                        names[name] = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise Fault("the prelude: " + first_line(describe(error)))
        if entry and program is None:
            # The prelude may hold a stub of it; the program's is the one meant.
            candidate = names[entry] = self.name(entry)
        if entry:
            names.setdefault("candidate", candidate)
        for code, imports in suite.parts:
            if imports:
                self.import_with(code, names)
            else:
                self.attempt(None, exec, code, names)
        for name, how in suite.waiting:
            found = dict.get(names, name)
            if how == "check":
                if not entry:
                    raise Fault("check takes the function under test, and none is named")
                self.attempt(None, found, candidate)
            elif how == "function":
                self.each_row(found)
            elif isinstance(found, type):
                self.test_class(found)

    @staticmethod
    def import_with(code, names):
        try:
            exec(code, names)
        except Exception as error:
            raise Fault("the tests: " + first_line(describe(error)))

    def attempt(self, before, work, /, *args, **named):
        """Does one thing of the tests; an exception ends it and, where one failure is enough, all.

        `before` is what was met before this and the other runs of the same, if there are any.
        """
        if before is None:
            before = self.met.copy()
        try:
            result = work(*args, **named)
            if inspect.iscoroutine(result):
                asyncio.run(result)
            return True
        except unittest.SkipTest:
            return False
        except BaseException as error:
            for number, it in enumerate(self.statements):
                if it.again and self.met[number] > before[number]:
                    self.missed[number] += 1
            if isinstance(error, (Stop, Gone, Foreign, Fault)):
                raise
            if self.uncaught is not None and self.uncaught[0] is error:
                self.fail(self.uncaught[1], self.why(error))
            else:
                self.error = self.error or self.why(error)
            if not self.partial:
                raise Stop() from None
            return False

    def each_row(self, function):
        before = self.met.copy()
        for row in getattr(function, "__rows__", [{}]):
            self.attempt(before, function, **row)

    def test_class(self, kind):
        """Runs a class of tests, each in a new instance; unittest's own runner would swallow all."""
        framework = issubclass(kind, unittest.TestCase)
        if framework:
            tests = unittest.TestLoader().getTestCaseNames(kind)
            before, after = ("setUpClass", "setUp", "asyncSetUp"), ("tearDown", "asyncTearDown", "tearDownClass")
        else:
            holders = [vars(base) for base in reversed(kind.__mro__)]
            tests = dict.fromkeys(name for holder in holders for name in holder if name.startswith("test"))
            before, after = ("setup_class", "setup_method"), ("teardown_method", "teardown_class")
        if not self.around(kind, before[:1]):
            return
        for name in tests:
            met = self.met.copy()
            for row in getattr(getattr(kind, name), "__rows__", [{}]):
                case = kind(name) if framework else kind()
                if framework:
                    # Showing how two lists differ may take for ever; that they do is enough.
                    case._type_equality_funcs.clear()
                method = getattr(case, name)
                if getattr(method, "__unittest_skip__", False) or getattr(kind, "__unittest_skip__", False):
                    continue
                if self.around(case, before[1:], method):
                    self.attempt(met, method, **row)
                    self.around(case, after[:-1], method)
        self.around(kind, after[-1:])

    def around(self, holder, names, *given):
        """Calls what prepares or clears up, which may take the test's method or not."""
        for name in names:
            work = getattr(holder, name, None)
            if work is not None and not self.attempt(None, work, *given[:len(inspect.signature(work).parameters)]):
                return False
        return True



