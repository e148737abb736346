"""The program's side: runs what a policy wrote and does to it what the judge asks.

Nothing here is trusted: the program shares this interpreter and may have changed all of it. All it
can gain is to answer a question with other plain data than its functions would have returned.

Requests, each a JSON list; a target is the name of a global or the number of a handle:

    ["name", name]                    what the global is
    ["call", target, args, kwargs]    values as a "t" and a "d"; see `values.py`
    ["attr", target, name]            an attribute
    ["op", target, name, *values]     one of `OPERATIONS`

Replies: ["ok", value], with the changed arguments as a third item where a call returned None;
["raise", type name, nearest built-in base, text]; ["large", why] for a result that cannot be sent.
"""

import ast
import builtins
import random
import sys
import types

import values

OPERATIONS = {
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "int": int,
    "float": float,
    "item": lambda value, key: value[key],
    "contains": lambda value, item: item in value,
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value: type(value).__exit__(value, None, None, None),
}


def first_line(text, limit=300):
    text = text.strip().split("\n", 1)[0] if type(text) is str else "?"
    return text[:limit].encode("utf-8", "backslashreplace").decode()


def describe(error):
    """Type and text of an exception, and the line of the program where it was raised."""
    kind = type(error).__name__
    try:
        text = str(error)
        text = first_line(text) if type(text) is str else ""
    except BaseException:
        text = ""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is None and isinstance(error, SyntaxError):
        line = error.lineno
    said = kind + (": " + text if text else "")
    return said + (" (line %d)" % line if type(line) is int else "")


def builtin_base(kind):
    for base in type.mro(kind):
        if base.__module__ == "builtins" and getattr(builtins, base.__name__, None) is base:
            return base.__name__
    return "Exception"


class Program:
    """The one program of this instance."""

    def __init__(self):
        self.names = {}
        self.handles = []
        self.reader = values.Reader(lambda target, _: self.target(target), trusted=True)

    def keep(self, value):
        for number, kept in enumerate(self.handles):
            if kept is value:
                return number
        if len(self.handles) >= 10_000:
            raise values.TooLarge("more than 10000 objects that are not plain data")
        self.handles.append(value)
        return len(self.handles) - 1

    def load(self, source, recursion, seed):
        """Runs a program from its first line, in a namespace of its own."""
        main = types.ModuleType("__main__")
        self.names = main.__dict__
        self.names["__builtins__"] = builtins
        sys.modules["__main__"] = main
        sys.argv = ["program.py"]
        sys.setrecursionlimit(recursion)
        random.seed(seed)
        return self.run(lambda: exec(compile(source, "<program>", "exec", dont_inherit=True), self.names))

    def more(self, source):
        """Runs more source in the same namespace and shows the last expression, as a notebook does."""

        def run():
            tree = ast.parse(source, "<program>")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<program>", "exec", dont_inherit=True), self.names)
            if last is not None:
                shown = eval(compile(ast.Expression(last.value), "<program>", "eval"), self.names)
                if shown is not None:
                    print(repr(shown))

        return self.run(run)

    def run(self, work):
        error = status = None
        try:
            work()
        except SystemExit as exit:
            if exit.code is None or type(exit.code) is int:
                status = (exit.code or 0) & 0xFF
            else:
                status = 1
                print(exit.code, file=sys.stderr)
        except BaseException as caught:
            error = describe(caught)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException as caught:
                error = error or describe(caught)
        return values.to_json({"error": error, "exit": status})

    def target(self, target):
        if type(target) is int:
            return self.handles[target]
        if target in self.names:
            return self.names[target]
        raise NameError("name %r is not defined" % (target,))

    def operate(self, request):
        try:
            try:
                return self.reply(values.from_json(request))
            except values.TooLarge as large:
                return values.to_json(["large", str(large)])
        except BaseException as error:
            try:
                kind = type(error)
                return values.to_json(["raise", kind.__name__, builtin_base(kind), describe(error)])
            except BaseException:
                return '["raise","Exception","Exception","an exception that cannot be described"]'

    def reply(self, request):
        what, target = request[0], self.target(request[1])
        writer = values.Writer(self.keep)
        if what == "name":
            if isinstance(target, type) and issubclass(target, BaseException):
                base = builtin_base(target)
                return values.to_json(["ok", ["e", target.__name__, base]])
            return values.to_json(["ok", writer.write(target, 0)])
        if what == "attr":
            return values.to_json(["ok", writer.write(getattr(target, request[2]), 0)])
        if what == "op":
            given = [self.reader.read(value) for value in request[3:]]
            return values.to_json(["ok", writer.write(OPERATIONS[request[2]](target, *given), 0)])
        args, named = self.reader.read(request[2]), self.reader.read(request[3])
        result = target(*args, **named)
        if result is None and args:
            # It may have worked in place: what it returned says nothing, so its arguments speak.
            after = values.Writer(self.keep).write(args, 0)
            if after != request[2]:
                return values.to_json(["ok", None, after])
        return values.to_json(["ok", writer.write(result, 0)])
