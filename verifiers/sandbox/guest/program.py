"""The program's side: runs what a policy wrote and does to it what the judge asks.

Nothing here is trusted: the program shares this interpreter and may have changed all of it. All it
can gain is to answer a question with other plain data than its functions would have returned.

Requests, each a JSON list; a target is the name of a global or the number of a handle:

    ["name", name]                          what the global is
    ["call", target, args, kwargs, back]    values as a "t" and a "d"; see `values.py`
    ["attr", target, name]                  an attribute
    ["op", target, name, *values]           one of `OPERATIONS`

Replies: ["ok", value], after a call that changed its arguments with [args, kwargs] as a third item
where `back` asks for them or the call returned None; ["raise", names of the program's own classes
from the exception's up to a built-in one, the built-in one, text, text with type and line];
["large", why] for a result that cannot be sent. An exception class, as a global or an attribute, is
["e", names of own classes, built-in base].
"""

import ast
import asyncio
import builtins
import copy
import operator
import random
import sys
import types

import values

# Bytes of the longest reply.
LONGEST = 8 << 20

ARITHMETIC = tuple("add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split())
ORDERINGS = ("lt", "le", "gt", "ge")
UNARY = ("neg", "pos", "abs", "invert")


def is_instance(kind, value):
    return isinstance(value, own_class(kind))


def is_subclass(kind, other):
    return isinstance(other, type) and issubclass(other, own_class(kind))


def own_class(kind):
    if isinstance(kind, type) and kind.__module__ == "__main__":
        return kind
    raise TypeError("not a class of the program")


def run_to_end(awaitable):
    async def awaited():
        return await awaitable

    return asyncio.run(awaited())


def reflected(operation):
    return lambda value, other: operation(other, value)


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
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "setattr": setattr,
    "contains": lambda value, item: item in value,
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value: type(value).__exit__(value, None, None, None),
    "isinstance": is_instance,
    "issubclass": is_subclass,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "run": run_to_end,
    "plain": lambda value: values.as_base(value, values.built_in_base(type(value))),
}
for _name in ARITHMETIC + ORDERINGS + UNARY:
    OPERATIONS[_name] = getattr(operator, "__%s__" % _name)
for _name in ARITHMETIC:
    OPERATIONS["r" + _name] = reflected(OPERATIONS[_name])


def first_line(text, limit=values.TEXT):
    text = text.strip().split("\n", 1)[0] if type(text) is str else "?"
    return text[:limit].encode("utf-8", "backslashreplace").decode()


def text_of(error):
    """The first line of what an exception says."""
    try:
        text = str(error)
        return first_line(text) if type(text) is str else ""
    except BaseException:
        return ""


def describe(error):
    """Type and text of an exception, and the line of the program where it was raised."""
    kind = values.type_name(type(error))
    # The text of a syntax error would name its line a second time.
    text = error.msg if type(error) is SyntaxError and type(error.msg) is str else text_of(error)
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is None and isinstance(error, SyntaxError):
        line = error.lineno
    said = first_line(kind + (": " + text if text else ""))
    return said + (" (line %d)" % line if type(line) is int else "")


def lineage(kind):
    """Names of an exception class and its bases up to the first built-in one, and that one's name."""
    own = []
    for base in type.mro(kind):
        name = values.type_name(base)
        if base.__module__ == "builtins" and getattr(builtins, name, None) is base:
            return own, name
        own.append(name)
    return own, "Exception"


class Program:
    """The one program of this instance."""

    def __init__(self):
        self.names = {}
        self.handles = []
        self.numbers = {}
        self.reader = values.Reader(lambda target, _: self.target(target), trusted=True)

    def keep(self, value):
        # What is kept stays alive, so its identity stays its own; a method is made anew at each use.
        key = id(value)
        if type(value) is types.MethodType:
            key = id(value.__self__), id(value.__func__)
        number = self.numbers.get(key)
        if number is None:
            if len(self.handles) >= 10_000:
                raise values.TooLarge("more than 10000 objects that are not plain data")
            number = self.numbers[key] = len(self.handles)
            self.handles.append(value)
        return number

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
                reply = self.reply(values.from_json(request))
                if len(reply) > LONGEST:
                    return values.to_json(["large", "more than %d bytes" % LONGEST])
                return reply
            except values.TooLarge as large:
                return values.to_json(["large", first_line(str(large))])
        except BaseException as error:
            try:
                own, base = lineage(type(error))
                return values.to_json(["raise", own[:50] or [base], base, text_of(error), describe(error)])
            except BaseException:
                return '["raise",["Exception"],"Exception","","an exception that cannot be described"]'

    def reply(self, request):
        what, target = request[0], self.target(request[1])
        if what == "call":
            return self.call(target, request[2], request[3], len(request) > 4 and request[4])
        if what == "op":
            given = [self.reader.read(value) for value in request[3:]]
            found = OPERATIONS[request[2]](target, *given)
        else:
            found = target if what == "name" else getattr(target, request[2])
            if isinstance(found, type) and issubclass(found, BaseException):
                own, base = lineage(found)
                return values.to_json(["ok", ["e", own[:50], base]])
        return values.to_json(["ok", values.Writer(self.keep, derived=True).write(found, 0)])

    def call(self, target, args, named, back):
        given, given_named = self.reader.read(args), self.reader.read(named)
        result = target(*given, **given_named)
        reply = ["ok", values.Writer(self.keep, derived=True).write(result, 0)]
        if (back or result is None) and any(type(it) is list for it in args[1:] + named[1:]):
            # It may have worked in place: its arguments then say more than what it returned.
            writer = values.Writer(self.keep, derived=True)
            try:
                after = [writer.write(given, 0), writer.write(given_named, 0)]
            except values.TooLarge:
                return values.to_json(reply)
            if after != [args, named]:
                reply.append(after)
        return values.to_json(reply)
