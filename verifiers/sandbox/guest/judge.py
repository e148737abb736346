"""The judge's side: runs tests whose functions live in another instance.

A name that the tests use and that neither they, their prelude nor Python define is a name of the
program. It becomes a `Remote`, which asks the program through the host. Only plain data comes
back, so every comparison is made here, by an interpreter that the program has never touched.

Request: `{"tests": source, "prelude": source, "entry": name | null, "partial": bool,
"fresh": bool, "inside": bool}`; reply: `{"results": [[line, passed, why], ...], "error": text |
null, "fault": text | null, "functions": text | null}`. `error` ended the tests early and is the
program's doing, `fault` is the tests' own, `functions` says that the tests pass the program
something that cannot be sent.
"""

import ast
import builtins
import importlib
import random
import sys

import values
from program import describe, first_line

KEPT = 128


class Gone(BaseException):
    """The program's instance is dead: a limit was met."""


class Foreign(BaseException):
    """The tests hand the program what cannot be sent to it."""


class Stop(BaseException):
    """The first failure, where one is enough."""


class Remote:
    """An object of the program that is not plain data, or a function of it."""

    __slots__ = ("_judge", "_target", "_kind")

    def __init__(self, judge, target, kind):
        object.__setattr__(self, "_judge", judge)
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *args, **named):
        return self._judge.call(self._target, args, named)

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__", "__class__"):
            raise AttributeError(name)
        judge = self._judge
        return judge.received(judge.ask(["attr", self._target, name])[1])

    def _do(self, what, *given):
        judge = self._judge
        asked = ["op", self._target, what, *[judge.write(value) for value in given]]
        return judge.received(judge.ask(asked)[1])

    def __iter__(self):
        return self._do("iter")

    def __next__(self):
        return self._do("next")

    def __len__(self):
        return self._do("len")

    def __getitem__(self, key):
        return self._do("item", key)

    def __contains__(self, item):
        return bool(self._do("contains", item))

    def __bool__(self):
        return bool(self._do("bool"))

    def __str__(self):
        return self._do("str")

    def __repr__(self):
        return self._do("repr")

    def __int__(self):
        return self._do("int")

    def __float__(self):
        return self._do("float")

    def __enter__(self):
        return self._do("enter")

    def __exit__(self, *_):
        self._do("exit")

    # Equality is never asked of the program: it would say yes.
    def __eq__(self, other):
        return type(other) is Remote and other._target == self._target

    def __hash__(self):
        return hash(self._target)


class Names(dict):
    """The tests' globals: what they lack is looked for in the program."""

    # Set once the prelude has run, which may not ask the program for anything.
    judge = None

    def __missing__(self, name):
        if self.judge is None or name.startswith("__") or hasattr(builtins, name):
            raise KeyError(name)
        value = self.judge.name(name)
        if type(value) is Remote:
            self[name] = value
        return value


class Assert:
    """Around one assertion: counts it and notes what became of it."""

    __slots__ = ("judge", "line", "guarded")

    def __init__(self, judge, line, guarded):
        self.judge, self.line, self.guarded = judge, line, guarded

    def __enter__(self):
        self.judge.begin()

    def __exit__(self, kind, error, trace):
        judge = self.judge
        if kind is None:
            judge.results.append([self.line, True, ""])
            return False
        if self.guarded or not issubclass(kind, Exception):
            return False
        judge.results.append([self.line, False, judge.why(error)])
        if not judge.partial:
            raise Stop() from None
        return True


class Rewrite(ast.NodeTransformer):
    """Wraps every assertion, except inside `try`, where the tests mean to catch it."""

    def __init__(self):
        self.guarded = False
        self.count = 0

    def visit_Try(self, node):
        before, self.guarded = self.guarded, True
        node.body = [self.visit(child) for child in node.body]
        self.guarded = before
        for part in (node.handlers, node.orelse, node.finalbody):
            part[:] = [self.visit(child) for child in part]
        return node

    visit_TryStar = visit_Try

    def visit_Assert(self, node):
        self.count += 1
        call = ast.Call(
            ast.Name("__assert__", ast.Load()),
            [ast.Constant(node.lineno), ast.Constant(self.guarded)],
            [],
        )
        around = ast.With([ast.withitem(call)], [node])
        return ast.fix_missing_locations(ast.copy_location(around, node))


class Tests:
    """Tests, compiled, and what their text says about the names they use."""

    def __init__(self, prelude, source):
        self.before = compile(prelude, "<prelude>", "exec", dont_inherit=True)
        tree = ast.parse(source, "<tests>")
        nodes = [*ast.walk(tree), *ast.walk(ast.parse(prelude))]
        loaded = {node.id for node in nodes if isinstance(node, ast.Name)}
        called = {
            node.func.id
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        bases = {
            node.value.id
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        bound = {
            node.id
            for node in nodes
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.alias):
                bound.add((node.asname or node.name).split(".")[0])
        # A module that the tests forgot to import is the judge's, whoever else imports it.
        self.modules = {name for name in bases - bound if name in sys.stdlib_module_names}
        free = loaded - bound - self.modules
        # Tests that use no name but Python's own are about a function that has such a name.
        shadow = called & free
        alone = len(shadow) == 1 and all(hasattr(builtins, name) for name in free)
        self.shadow = shadow.pop() if alone else None
        # Functions that a test runner would call: `check` of HumanEval and `test_...` of pytest.
        self.waiting = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            and node.name not in called
            and (node.name == "check" or node.name.startswith("test_"))
        ]
        rewrite = Rewrite()
        self.code = compile(rewrite.visit(tree), "<tests>", "exec", dont_inherit=True)
        self.asserts = rewrite.count


class Judge:
    """Runs tests; one per instance, used again and again."""

    def __init__(self, ask):
        self.send = ask
        self.reader = values.Reader(self.handle, trusted=False)
        self.kept = {}
        self.results, self.exceptions = [], {}
        self.partial = self.fresh = False

    # What crosses.

    def handle(self, number, kind):
        return Remote(self, number, kind)

    def write(self, value):
        return values.Writer(self.number).write(value, 0)

    def number(self, value):
        if type(value) is Remote:
            return value._target
        raise Foreign("the tests pass the program a value of type %s" % type(value).__name__)

    def ask(self, request):
        """The program's reply to a request, "ok" and what follows it; other replies raise."""
        reply = values.from_json(self.send(values.to_json(request)))
        what = reply[0]
        if what == "ok":
            return reply
        if what == "raise":
            raise self.exception(str(reply[1]), str(reply[2]), str(reply[3]))
        if what == "large":
            raise ValueError("the result cannot be compared: " + str(reply[1]))
        raise Gone(str(reply[1]))

    def received(self, value):
        try:
            return self.reader.read(value)
        except Exception as error:
            raise ValueError("the result cannot be read: " + first_line(str(error)))

    def exception(self, kind, base, text):
        builtin = getattr(builtins, base, None)
        if not (isinstance(builtin, type) and issubclass(builtin, Exception)):
            builtin = RuntimeError
        known = self.exceptions.get(kind)
        try:
            error = (known or builtin)(text)
        except Exception:
            error = RuntimeError(text)
        error.__tallow__ = text
        return error

    def call(self, target, args, named):
        reply = self.ask(["call", target, self.write(args), self.write(named)])
        if len(reply) == 3:
            self.copy_back(args, reply[2])
        return self.received(reply[1])

    def copy_back(self, args, after):
        """A call that returned None worked in place: its arguments change here as they did there."""
        after = self.received(after)
        if type(after) is not tuple or len(after) != len(args):
            return
        for mine, theirs in zip(args, after):
            if type(mine) is not type(theirs):
                continue
            if type(mine) is list or type(mine) is bytearray:
                mine[:] = theirs
            elif isinstance(mine, (dict, set)):
                mine.clear()
                mine.update(theirs)

    def name(self, name):
        """What a global of the program is, to the tests."""
        try:
            value = self.ask(["name", name])[1]
        except NameError:
            raise NameError("the program does not define %s" % name) from None
        tag = value[0] if type(value) is list else None
        if tag == "e":
            base = getattr(builtins, str(value[2]), Exception)
            if not (isinstance(base, type) and issubclass(base, Exception)):
                base = Exception
            kind = self.exceptions[str(value[1])] = type(str(value[1]), (base,), {})
            return kind
        # By name, not by handle: the tests then see it when the program changes it.
        return Remote(self, name, "function") if tag == "h" else self.received(value)

    # The tests.

    def begin(self):
        if self.fresh:
            self.send('["fresh"]')

    def why(self, error):
        text = getattr(error, "__tallow__", None)
        if text is not None:
            return first_line(text)
        if type(error) is AssertionError:
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
            found = self.kept[key] = Tests(prelude, tests)
        return found

    def check(self, request, program):
        self.results, self.exceptions = [], {}
        self.partial, self.fresh = request["partial"], request["fresh"] and not request["inside"]
        reply = {"results": self.results, "error": None, "fault": None, "functions": None}
        try:
            tests = self.prepared(request["prelude"], request["tests"])
        except Exception as error:
            reply["fault"] = first_line(describe(error))
            return values.to_json(reply)
        entry = request["entry"] or tests.shadow
        if request["inside"]:
            names = dict(program.names)
            candidate = names.get(entry)
        else:
            names = Names()
            candidate = None
        names["__name__"] = "__main__"
        names["__builtins__"] = builtins
        names["__assert__"] = lambda line, guarded: Assert(self, line, guarded)
        random.seed(0)
        if not request["inside"]:
            try:
                exec(tests.before, names)
                names.judge = self
                for module in tests.modules:
                    names.setdefault(module, importlib.import_module(module))
            except Exception as error:
                reply["fault"] = "the prelude: " + first_line(describe(error))
                return values.to_json(reply)
        try:
            if entry and not request["inside"]:
                # The prelude may hold a stub of it; the program's is the one meant.
                candidate = names[entry] = self.name(entry)
            exec(tests.code, names)
            for name in tests.waiting:
                if name == "check" and entry:
                    names[name](candidate)
                elif name != "check":
                    names[name]()
            if tests.asserts and not self.results:
                reply["error"] = "none of the tests' assertions was reached"
        except Stop:
            pass
        except Gone as gone:
            reply["error"] = str(gone) or "the program does not answer"
        except Foreign as foreign:
            reply["functions"] = str(foreign)
        except BaseException as error:
            reply["error"] = self.why(error)
        return values.to_json(reply)
