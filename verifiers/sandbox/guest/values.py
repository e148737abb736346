"""How Python values cross between the two instances and to the host: plain data as tagged JSON.

    None, bool, finite float, text      themselves; text is escaped to ASCII
    int                                 itself below 2**53, else ["I", "hexadecimal"]
    other floats                        ["f", "nan" | "inf" | "-inf"]
    list, tuple, set, frozenset, deque  ["l" | "t" | "s" | "z" | "q", item, ...]
    dict and its kin                    ["d" | "C" | "O" | "D", key, value, ...]
    bytes, bytearray                    ["b" | "B", "hexadecimal"]
    complex, range, Decimal, Fraction   ["c", re, im], ["r", start, stop, step], ["M", text], ["F", n, d]
    date, time, datetime, timedelta     ["T", kind, field, ...]
    slice                               ["S", start, stop, step]
    built-in types and functions        ["y", name]
    a subclass of a built-in            ["p", number, type name, the built-in's value]
    anything else                       ["h", number, type name]: it stays where it is

The value of a subclass of a built-in is written by the built-in's own methods, so what its author
put into `__eq__` or `__iter__` has no say; its number leads to what else it has.
"""

import builtins
import collections
import datetime
import decimal
import fractions
import json

DEPTH = 150
# Characters of a type's name, or of a text about an error.
TEXT = 300
ITEMS = 1_000_000
SMALL = 1 << 53

_SCALARS = {type(None), bool, str}
SEQUENCES = {list: "l", tuple: "t", set: "s", frozenset: "z", collections.deque: "q"}
MAPPINGS = {
    dict: "d",
    collections.Counter: "C",
    collections.OrderedDict: "O",
    collections.defaultdict: "D",
}
BASES = (
    int, float, str, tuple, list, collections.Counter, collections.OrderedDict,
    collections.defaultdict, dict, set, frozenset, collections.deque, bytes, bytearray, complex,
    decimal.Decimal, fractions.Fraction, datetime.datetime, datetime.date, datetime.time,
    datetime.timedelta,
)
_NAMED = {
    value: name
    for name, value in vars(builtins).items()
    if isinstance(value, type) or type(value) is type(len)
}
MUTABLE = (list, dict, set, collections.deque, bytearray)
_ASCII = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode
_TEXT = json.JSONDecoder().decode


class TooLarge(Exception):
    """A value too deep or with too many parts."""


def built_in_base(kind):
    """The built-in that a class derives from, if its values are plain data."""
    if kind in BASES:
        return None
    for base in type.mro(kind)[1:-1]:
        if base in BASES:
            return base
    return None


def as_base(value, base):
    """The built-in's value in an object of a class that derives from it."""
    if base is int:
        return int.__add__(value, 0)
    if base is float:
        return float.__add__(value, 0.0)
    if base is str:
        return str.join("", str.__iter__(value))
    if base in SEQUENCES:
        return base(base.__iter__(value))
    if base in MAPPINGS:
        plain = dict.__new__(base)
        for key, item in dict.items(value):
            dict.__setitem__(plain, key, item)
        return plain
    if base is bytes or base is bytearray:
        return base(base.__iter__(value))
    if base is complex:
        return complex.__add__(value, 0)
    if base is decimal.Decimal:
        return decimal.Decimal(decimal.Decimal.as_tuple(value))
    if base is fractions.Fraction:
        return fractions.Fraction(value.numerator, value.denominator)
    if base is datetime.datetime:
        return datetime.datetime.combine(value.date(), value.timetz())
    if base is datetime.date:
        return datetime.date(value.year, value.month, value.day)
    if base is datetime.time:
        return datetime.time(value.hour, value.minute, value.second, value.microsecond, value.tzinfo)
    return datetime.timedelta(value.days, value.seconds, value.microseconds)


def type_name(kind):
    name = kind.__name__
    return name[:TEXT] if type(name) is str else "?"


class Writer:
    """Writes values; `keep` turns what is not plain into a handle, or refuses.

    `derived` says whether the value of a subclass of a built-in goes along with its handle.
    """

    def __init__(self, keep, derived=False):
        self.keep = keep
        self.derived = derived
        self.items = 0

    def text(self, value):
        return _ASCII(self.write(value, 0))

    def write(self, value, depth):
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind is int:
            return value if -SMALL < value < SMALL else ["I", format(value, "x")]
        if kind is float:
            if value - value == 0.0:
                return value
            return ["f", "nan" if value != value else "inf" if value > 0 else "-inf"]
        if depth > DEPTH:
            raise TooLarge("nested more than %d deep" % DEPTH)
        tag = SEQUENCES.get(kind)
        if tag is not None:
            self.count(len(value))
            depth += 1
            write = self.write
            # A list of nothing but text and small numbers needs no call per item.
            return [tag, *[item if type(item) is str else write(item, depth) for item in value]]
        tag = MAPPINGS.get(kind)
        if tag is not None:
            self.count(2 * len(value))
            out = [tag]
            for key, item in dict.items(value):
                out.append(self.write(key, depth + 1))
                out.append(self.write(item, depth + 1))
            return out
        return self.rare(value, kind, depth)

    def count(self, more):
        self.items += more
        if self.items > ITEMS:
            raise TooLarge("more than %d parts" % ITEMS)

    def rare(self, value, kind, depth):
        if kind is bytes:
            return ["b", value.hex()]
        if kind is bytearray:
            return ["B", value.hex()]
        if kind is complex:
            return ["c", self.write(value.real, depth), self.write(value.imag, depth)]
        if kind is range:
            return ["r", *[self.write(part, depth) for part in (value.start, value.stop, value.step)]]
        if kind is decimal.Decimal:
            return ["M", str(value)]
        if kind is fractions.Fraction:
            return ["F", self.write(value.numerator, depth), self.write(value.denominator, depth)]
        if kind is datetime.datetime and value.tzinfo is None:
            return ["T", "datetime", value.year, value.month, value.day, value.hour, value.minute,
                    value.second, value.microsecond]
        if kind is datetime.date:
            return ["T", "date", value.year, value.month, value.day]
        if kind is datetime.time and value.tzinfo is None:
            return ["T", "time", value.hour, value.minute, value.second, value.microsecond]
        if kind is datetime.timedelta:
            return ["T", "timedelta", value.days, value.seconds, value.microseconds]
        if value is Ellipsis or value is NotImplemented:
            return ["y", "Ellipsis" if value is Ellipsis else "NotImplemented"]
        try:
            name = _NAMED.get(value) if kind is type or kind is type(len) else None
        except TypeError:
            name = None
        if name is not None:
            return ["y", name]
        if kind is slice:
            return ["S", *[self.write(part, depth + 1) for part in (value.start, value.stop, value.step)]]
        base = built_in_base(kind) if self.derived else None
        if base is not None:
            try:
                plain = self.write(as_base(value, base), depth)
                return ["p", self.keep(value), type_name(kind), plain]
            except TooLarge:
                # It holds itself, as a node of a graph does: its handle is all there is to send.
                pass
        return ["h", self.keep(value), type_name(kind)]


def plain_type(value):
    """Whether a built-in is a class of plain data or of exceptions."""
    return isinstance(value, type) and (value in BASES or value is bool or issubclass(value, Exception))


class Reader:
    """Reads values; `handle` makes something of a handle's number and type name.

    From a `trusted` writer it takes built-in functions as well as types. `derived` makes something
    of an object of a class that derives from a built-in: its number, type name and plain value.
    """

    def __init__(self, handle, trusted, derived=None):
        self.handle = handle
        self.derived = derived
        # What the judge calls of these must make data, or exceptions to expect.
        self.named = {name: value for value, name in _NAMED.items() if trusted or plain_type(value)}
        self.named.update({"Ellipsis": Ellipsis, "NotImplemented": NotImplemented})

    def text(self, text):
        return self.read(_TEXT(text))

    def read(self, value):
        if type(value) is not list:
            return value
        tag = value[0]
        read = self.read
        if tag == "l":
            return [read(item) for item in value[1:]]
        if tag == "t":
            return tuple([read(item) for item in value[1:]])
        if tag == "d":
            return self.pairs({}, value)
        if tag == "s":
            return {read(item) for item in value[1:]}
        if tag == "I":
            return int(value[1], 16)
        if tag == "f":
            return float(value[1])
        if tag == "z":
            return frozenset([read(item) for item in value[1:]])
        if tag == "q":
            return collections.deque([read(item) for item in value[1:]])
        if tag == "C":
            return self.pairs(collections.Counter(), value)
        if tag == "O":
            return self.pairs(collections.OrderedDict(), value)
        if tag == "D":
            return self.pairs(collections.defaultdict(), value)
        if tag == "b":
            return bytes.fromhex(value[1])
        if tag == "B":
            return bytearray.fromhex(value[1])
        if tag == "c":
            return complex(read(value[1]), read(value[2]))
        if tag == "r":
            return range(read(value[1]), read(value[2]), read(value[3]))
        if tag == "M":
            return decimal.Decimal(value[1])
        if tag == "F":
            return fractions.Fraction(read(value[1]), read(value[2]))
        if tag == "T" and value[1] in ("datetime", "date", "time", "timedelta"):
            return getattr(datetime, value[1])(*value[2:])
        if tag == "y":
            return self.named[value[1]]
        if tag == "h":
            return self.handle(value[1], value[2])
        if tag == "p" and self.derived is not None:
            return self.derived(value[1], value[2], read(value[3]))
        if tag == "S":
            return slice(read(value[1]), read(value[2]), read(value[3]))
        raise ValueError("no value is written with the tag %r" % (tag,))

    def pairs(self, mapping, value):
        for index in range(1, len(value), 2):
            mapping[self.read(value[index])] = self.read(value[index + 1])
        return mapping


def to_json(message):
    return _ASCII(message)


def from_json(text):
    return _TEXT(text)
