"""What the text of tests says: which assertions they hold, what runs them, and which names are whose.

Every assertion statement is wrapped in a call of `__assert__` with its number. A statement *must*
be reached unless it stands under a condition or in a function that is only called under one.
"""

import __future__

import ast
import builtins
import importlib.util
import sys
import symtable
import typing
import unittest
from collections import namedtuple

ASSERTIONS = frozenset(name for name in dir(unittest.TestCase) if name.startswith("assert"))
# What runs a test class around its tests.
AROUND = frozenset(
    "setUp tearDown setUpClass tearDownClass asyncSetUp asyncTearDown setup_method teardown_method "
    "setup_class teardown_class".split()
)
# Modules whose names are the program's own.
PROGRAM = frozenset("solution program main submission answer your_module __main__".split())
ABSENT = {"np": "numpy", "numpy": "numpy", "pd": "pandas", "pandas": "pandas", "torch": "torch",
          "scipy": "scipy", "sympy": "sympy", "plt": "matplotlib"}
BUILTINS = frozenset(dir(builtins))
# Classes and constants that tests forget to import; those of typing only where nothing calls them.
KNOWN = {
    **dict.fromkeys("Counter OrderedDict defaultdict deque namedtuple ChainMap".split(), "collections"),
    **dict.fromkeys("isclose inf nan".split(), "math"),
    **dict.fromkeys("datetime timedelta".split(), "datetime"),
    "Decimal": "decimal",
    "Fraction": "fractions",
}
KNOWN_TYPES = {name: "typing" for name in typing.__all__ if name[0].isupper() and name not in KNOWN}
EVALUATING = frozenset("eval exec compile __import__".split())
EVALUATING_MODULES = frozenset("pickle marshal importlib code runpy".split())
# Modules that tests can use without changing the judge for the tests after them.
PURE = frozenset(
    "math cmath re string typing collections itertools functools operator random fractions statistics "
    "heapq bisect copy datetime json numbers dataclasses enum hashlib array textwrap unicodedata decimal "
    "unittest pytest __future__ abc contextlib calendar base64 binascii colorsys difflib graphlib "
    "keyword pprint struct uuid".split()
)
REACHING = frozenset("setattr delattr globals vars locals open input breakpoint".split())
CONTEXTS = frozenset("getcontext setcontext localcontext DefaultContext BasicContext ExtendedContext".split())
HARMLESS = frozenset("__name__ __doc__ __class__ __len__ __iter__ __next__ __eq__ __hash__ __str__ __repr__ "
                     "__init__ __call__ __contains__ __getitem__".split())

Place = namedtuple("Place", "owner rows once conditional guarded")
Statement = namedtuple("Statement", "line rows owner optional hopeless again")
# An assertion as the judge counts it: how often, whether it must be reached, whether it can be met at
# all, and whether it may have more runs ahead of it when a run of the tests breaks off.
Counted = namedtuple("Counted", "line rows must possible again")
Function = namedtuple("Function", "name kind top needs")


def is_main(test):
    """Whether a condition is `__name__ == "__main__"`, which holds here."""
    return (isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"
            and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)
            and isinstance(test.comparators[0], ast.Constant) and test.comparators[0].value == "__main__")


def table_length(node):
    """Rows of the literal that a loop goes over to its end, else None."""
    if any(isinstance(part, (ast.Break, ast.Continue, ast.Return)) for child in node.body for part in ast.walk(child)):
        return None
    try:
        return len(ast.literal_eval(node.iter))
    except Exception:
        return None


def parametrized(node):
    """Runs that `parametrize` marks give a function, 0 if the text does not tell, else None."""
    rows = None
    for mark in node.decorator_list:
        if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Attribute) and mark.func.attr == "parametrize":
            table = mark.args[1] if len(mark.args) > 1 else None
            if not isinstance(table, (ast.List, ast.Tuple)) or any(isinstance(it, ast.Starred) for it in table.elts):
                return 0
            rows = (1 if rows is None else rows) * len(table.elts)
    return rows


def last_name(node):
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Imports(ast.NodeTransformer):
    """Takes out imports of the program: its names are there without."""

    def __init__(self):
        self.changed = False

    def visit_Import(self, node):
        mine = [it for it in node.names if it.name in PROGRAM]
        if not mine:
            return node
        self.changed = True
        node.names = [it for it in node.names if it.name not in PROGRAM]
        given = [self.given(node, it.asname or it.name, "__program__") for it in mine]
        return [node, *given] if node.names else given

    def visit_ImportFrom(self, node):
        if (node.module or "").split(".")[0] not in PROGRAM and not node.level:
            return node
        self.changed = True
        renamed = [self.given(node, it.asname, it.name) for it in node.names if it.asname not in (None, it.name)]
        return renamed or ast.copy_location(ast.Pass(), node)

    @staticmethod
    def given(node, name, value):
        assign = ast.Assign([ast.Name(name, ast.Store())], ast.Name(value, ast.Load()))
        return ast.fix_missing_locations(ast.copy_location(assign, node))


class Rewrite(ast.NodeTransformer):
    """Wraps every assertion and notes where it stands and which functions are called from where."""

    def __init__(self, defined):
        self.defined = defined
        self.statements, self.functions = [], []
        # Function that calls or None, name called, whether it only may be called.
        self.calls = []
        # Functions named otherwise than to call them.
        self.mentioned = set()
        # Whether `main` is that of a test framework.
        self.main = False
        self.kind = None
        self.place = Place(None, 1, False, False, False)

    # Where things stand.

    def block(self, nodes):
        before = self.place
        done = []
        for node in nodes:
            new = self.visit(node)
            done += new if isinstance(new, list) else [new]
            if isinstance(node, (ast.Return, ast.Raise, ast.Continue, ast.Break)):
                self.place = self.place._replace(conditional=True)
        self.place = before
        return done

    def within(self, nodes, **changes):
        before, self.place = self.place, self.place._replace(**changes)
        nodes[:] = self.block(nodes)
        self.place = before

    def visit_Module(self, node):
        node.body = self.block(node.body)
        return node

    def visit_If(self, node):
        node.test = self.visit(node.test)
        if is_main(node.test):
            self.within(node.body)
        else:
            self.within(node.body, conditional=True)
        self.within(node.orelse, conditional=True)
        return node

    def visit_For(self, node):
        node.iter = self.visit(node.iter)
        rows = table_length(node) if isinstance(node, ast.For) else None
        if rows is None:
            self.within(node.body, once=True)
        else:
            self.within(node.body, rows=self.place.rows * rows)
        self.within(node.orelse, conditional=True)
        return node

    visit_AsyncFor = visit_For

    def visit_While(self, node):
        node.test = self.visit(node.test)
        self.within(node.body, conditional=True, once=True)
        self.within(node.orelse, conditional=True)
        return node

    def visit_Try(self, node):
        self.within(node.body, guarded=True)
        for handler in node.handlers:
            self.within(handler.body, conditional=True)
        self.within(node.orelse, conditional=True)
        self.within(node.finalbody)
        return node

    visit_TryStar = visit_Try

    def visit_Match(self, node):
        node.subject = self.visit(node.subject)
        for case in node.cases:
            self.within(case.body, conditional=True)
        return node

    def visit_FunctionDef(self, node):
        node.decorator_list = [self.visit(mark) for mark in node.decorator_list]
        rows = parametrized(node)
        given = node.args.posonlyargs + node.args.args
        needs = 0 if rows is not None else len(given) - len(node.args.defaults)
        owner = len(self.functions)
        self.functions.append(Function(node.name, self.kind, self.place.owner is None, needs))
        skipped = any("skip" in ast.dump(mark) for mark in node.decorator_list)
        before, kind = self.place, self.kind
        self.place = Place(owner, rows or 1, rows == 0, skipped, False)
        self.kind = None
        node.body = self.block(node.body)
        self.place, self.kind = before, kind
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        kind, self.kind = self.kind, node.name
        node.decorator_list = [self.visit(mark) for mark in node.decorator_list]
        node.body = self.block(node.body)
        self.kind = kind
        return node

    def maybe(self, node):
        before, self.place = self.place, self.place._replace(conditional=True)
        self.generic_visit(node)
        self.place = before
        return node

    visit_BoolOp = visit_IfExp = visit_Lambda = maybe
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = maybe

    def visit_Constant(self, node):
        return node

    # Which functions are called.

    def visit_Call(self, node):
        name, function = last_name(node.func), node.func
        direct = isinstance(function, ast.Name) or isinstance(getattr(function, "value", None), ast.Name) and (
            function.value.id in ("self", "cls"))
        if name in self.defined:
            self.calls.append((self.place.owner, name, self.place.conditional or not direct))
        if not isinstance(function, ast.Name):
            node.func = self.visit(function)
        node.args = [self.visit(it) for it in node.args]
        for keyword in node.keywords:
            keyword.value = self.visit(keyword.value)
        return node

    def visit_Attribute(self, node):
        if node.attr in self.defined:
            self.calls.append((self.place.owner, node.attr, True))
        node.value = self.visit(node.value)
        return node

    def visit_Name(self, node):
        if node.id in self.defined and isinstance(node.ctx, ast.Load):
            self.mentioned.add(node.id)
            self.calls.append((self.place.owner, node.id, True))
        return node

    # Assertions.

    def is_assertion(self, call):
        """Whether a call is a framework's way to assert."""
        if not isinstance(call, ast.Call):
            return False
        name, function = last_name(call.func), call.func
        if name in self.defined:
            return False
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            base = function.value.id
            return name in ASSERTIONS or name == "fail" and base in ("self", "pytest") or (
                name == "raises" and base == "pytest")
        return name == "raises" and isinstance(function, ast.Name)

    def wrapped(self, node, hopeless=False):
        place = self.place
        rows = 1 if place.once or place.conditional or place.guarded else place.rows
        number = len(self.statements)
        optional = place.conditional or place.guarded
        self.statements.append(
            Statement(node.lineno, rows, place.owner, optional, hopeless and optional, place.once or rows < place.rows))
        # Only what is new lacks a place in the text; an assertion may hold a large table.
        given = [ast.Constant(number), ast.Constant(place.guarded)]
        call = ast.copy_location(ast.Call(ast.Name("__assert__", ast.Load()), given, []), node)
        ast.fix_missing_locations(call)
        return ast.copy_location(ast.With([ast.withitem(call)], [node]), node)

    def visit_Assert(self, node):
        self.generic_visit(node)
        return self.wrapped(node, isinstance(node.test, ast.Constant) and not node.test.value)

    def visit_ImportFrom(self, node):
        self.main = self.main or node.module in ("unittest", "pytest") and any(it.name == "main" for it in node.names)
        return node

    def is_runner(self, node):
        """Whether an expression has a test framework run the tests, which is done here anyway."""
        for part in ast.walk(node):
            if isinstance(part, ast.Call) and last_name(part.func) == "main":
                base = getattr(part.func, "value", None)
                if last_name(base) in ("unittest", "pytest") if base is not None else self.main:
                    return True
        return False

    def visit_Expr(self, node):
        if self.is_runner(node.value):
            return ast.copy_location(ast.Pass(), node)
        self.generic_visit(node)
        if self.is_assertion(node.value):
            return self.wrapped(node, last_name(node.value.func) == "fail")
        return node

    def visit_With(self, node):
        for item in node.items:
            item.context_expr = self.visit(item.context_expr)
        if any(self.is_assertion(item.context_expr) for item in node.items):
            around = self.wrapped(node)
            self.within(node.body, guarded=True)
            return around
        self.within(node.body)
        return node

    visit_AsyncWith = visit_With


class Names:
    """The global names that a text binds and those that it uses, by the compiler's own account."""

    def __init__(self):
        self.bound, self.used = set(), set()

    def add(self, source):
        self.table(symtable.symtable(source, "<tests>", "exec"), True)

    def table(self, table, top):
        for symbol in table.get_symbols():
            if not (top or symbol.is_global()):
                continue
            if symbol.is_assigned() or symbol.is_imported():
                self.bound.add(symbol.get_name())
            if symbol.is_referenced():
                self.used.add(symbol.get_name())
        for child in table.get_children():
            self.table(child, False)


class Suite:
    """Tests, compiled, and what their text says about the names they use.

    `fault` says why they are no tests, `evaluates` that they run text as code, and `pure` that the
    judge is the same after them.
    """

    def __init__(self, prelude, source):
        before, tree = ast.parse(prelude), ast.parse(source)
        self.before = compile(before, "<prelude>", "exec", dont_inherit=True)
        imports = Imports()
        tree = imports.visit(tree)
        self.named(source if not imports.changed else ast.unparse(tree), prelude, tree, before)
        self.assertions(tree)

    def named(self, text, prelude, tree, before):
        names = Names()
        names.add(text)
        names.add(prelude)
        self.bound = names.bound
        free = names.used - names.bound
        called, bases, imported, attributes, tolerated = set(), set(), [], set(), set()
        self.pure = True
        for node in [*ast.walk(tree), *ast.walk(before)]:
            kind = type(node)
            if kind is ast.Call:
                if type(node.func) is ast.Name:
                    called.add(node.func.id)
            elif kind is ast.Attribute:
                attributes.add(node.attr)
                mine = type(node.value) is ast.Name and node.value.id == "self"
                if type(node.value) is ast.Name:
                    bases.add(node.value.id)
                if type(node.ctx) is not ast.Load and not mine or (
                        node.attr.startswith("_") and not mine and node.attr not in HARMLESS):
                    self.pure = False
            elif kind is ast.Import:
                imported += [(it.name, node) for it in node.names]
            elif kind is ast.ImportFrom:
                imported += [(node.module or "", node)]
                attributes.update(it.name for it in node.names)
            elif kind is ast.Try:
                tolerated.update(id(part) for child in node.body for part in ast.walk(child))
        self.modules = {
            name for name in bases & free if name in sys.stdlib_module_names or name in ("pytest",)
        }
        free -= self.modules
        self.fault = self.missing(imported, tolerated, bases & free)
        roots = {name.split(".")[0] for name, _ in imported} | self.modules
        self.evaluates = bool(EVALUATING & free or EVALUATING_MODULES & roots)
        if (not roots <= PURE or (REACHING | EVALUATING) & free or CONTEXTS & (attributes | free)
                or any(name.startswith("unittest.mock") for name, _ in imported)
                or "mock" in attributes or "register" in attributes
                or any(name.startswith("__") and name not in ("__name__", "__program__") for name in free)):
            self.pure = False
        self.known = {name: module for name, module in KNOWN.items() if name in free}
        self.known |= {name: module for name, module in KNOWN_TYPES.items() if name in free - called}
        # Whether a name is left for the program; without one, it answers to those of Python too.
        self.asks = "__program__" in free or any(
            name not in self.known and name not in BUILTINS for name in called & free)
        # Tests that use no name but Python's own are about a function that has such a name.
        shadow = called & free
        alone = len(shadow) == 1 and free <= BUILTINS
        self.shadow = shadow.pop() if alone else None

    @staticmethod
    def missing(imported, tolerated, bases):
        """What the tests need and this Python lacks, as a fault, else None."""
        lacking = [ABSENT[name] for name in bases if name in ABSENT]
        for name, node in imported:
            root = name.split(".")[0]
            if root in sys.modules or id(node) in tolerated:
                continue
            try:
                found = importlib.util.find_spec(root)
            except (ImportError, ValueError):
                found = None
            if found is None:
                lacking.append(root)
        return "the tests use %s, which the sandbox does not have" % lacking[0] if lacking else None

    def assertions(self, tree):
        """Wraps the assertions, settles which must be reached and what is to be run, and compiles."""
        flags = 0
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                for it in node.names:
                    flags |= getattr(__future__, it.name).compiler_flag
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        rewrite = Rewrite({node.name for node in functions})
        tree = rewrite.visit(tree)
        classes, kinds = test_classes(tree)
        reach = reached(rewrite, frozenset())
        # What a test runner would call: `check` of HumanEval, `test_...` of pytest, test classes.
        self.waiting, roots = [], set()
        # Of two functions of one name the later one is there.
        last = {(it.kind, it.name): number for number, it in enumerate(rewrite.functions) if it.top or it.kind}
        for number, function in enumerate(rewrite.functions):
            if last.get((function.kind, function.name), number) != number:
                continue
            if not function.top or function.kind is not None:
                if function.kind in kinds and (function.name.startswith("test") or function.name in AROUND):
                    roots.add(number)
                continue
            name = function.name
            if reach[number] == 2 or not (name == "check" or name.startswith("test_")):
                continue
            mentioned = name in rewrite.mentioned
            if name == "check" and function.needs == 1:
                self.waiting.append((name, "check"))
            elif function.needs == 0 and (mentioned or reach[number] == 0):
                self.waiting.append((name, "function"))
            elif reach[number] == 0 and self.fault is None:
                self.fault = "nothing gives the arguments of the tests' function %s" % name
                continue
            else:
                continue
            roots.add(number)
        order = {node.name: node.lineno for node in tree.body if hasattr(node, "name")}
        self.waiting += [(name, "class") for name in classes]
        self.waiting.sort(key=lambda it: order.get(it[0], 0))
        reach = reached(rewrite, roots)
        self.statements = []
        for it in rewrite.statements:
            sure = 2 if it.owner is None else reach[it.owner]
            must = sure == 2 and not it.optional
            possible = sure > 0 and it.rows > 0 and not it.hopeless
            again = it.again or it.owner is not None and it.owner not in roots
            self.statements.append(Counted(it.line, it.rows if must else 1, must, possible, again))
        if self.fault is None and not any(it.possible for it in self.statements):
            self.fault = "the tests hold no assertion"
        self.parts = [
            (compile(ast.Module([node], []), "<tests>", "exec", flags, dont_inherit=True),
             isinstance(node, (ast.Import, ast.ImportFrom)))
            for node in tree.body
        ]


def test_classes(tree):
    """Names of the classes that a test runner would run, and of all whose methods they then have."""
    found, kinds = [], set()
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [last_name(base) for base in node.bases]
        if any(base in ("TestCase", "IsolatedAsyncioTestCase") or base in found for base in bases) or (
                node.name.startswith("Test") and all(base == "object" for base in bases)):
            found.append(node.name)
            kinds.update([node.name], bases)
    return found, kinds


def reached(rewrite, roots):
    """Of each function: 2 if it is surely called, 1 if it may be, else 0."""
    reach = [2 if number in roots else 0 for number in range(len(rewrite.functions))]
    numbers = {}
    for number, function in enumerate(rewrite.functions):
        numbers.setdefault(function.name, []).append(number)
    changed = True
    while changed:
        changed = False
        for caller, name, maybe in rewrite.calls:
            new = 2 if caller is None else reach[caller]
            if maybe:
                new = min(new, 1)
            for number in numbers[name]:
                if reach[number] < new:
                    reach[number] = new
                    changed = True
    return reach
