"""What the judge holds of a program: objects that stay in the program's instance."""

import values
from program import ARITHMETIC, ORDERINGS, UNARY

# The only names with two underscores on each side that the program is asked for.
_ASKED = ("__name__", "__dict__")


class Remote:
    # An object of the program that is not plain data, or a function of it. No docstring: what the
    # program's object says of itself is its own. `_own` says that the tests name what this is, so
    # that what they pass it is their own choice; `_made`, that they made it by calling a class, and
    # `_born` in which assertion. What the program has `_returned` since is its answer: that it is asked
    # about no further than any other. `_length` is what it said of its length, and when.

    __slots__ = ("_judge", "_target", "_kind", "_own", "_made", "_born", "_returned", "_length")

    def __init__(self, judge, target, kind, own=False):
        keep = object.__setattr__
        keep(self, "_judge", judge)
        keep(self, "_target", target)
        keep(self, "_kind", kind)
        keep(self, "_own", own)
        keep(self, "_made", False)
        keep(self, "_born", None)
        keep(self, "_returned", False)
        keep(self, "_length", None)

    def __call__(self, *args, **named):
        target = self._target
        making = type(target) is str and target[:1].isupper()
        result = self._judge.call(target, args, named, self._own, making)
        if making and isinstance(result, Remote):
            result._make()
        return result

    def _make(self):
        if not self._returned:
            object.__setattr__(self, "_made", True)
            object.__setattr__(self, "_born", self._judge.moment())
        object.__setattr__(self, "_own", True)

    def _answer(self):
        object.__setattr__(self, "_made", False)
        object.__setattr__(self, "_returned", True)

    def __getattr__(self, name):
        if name.startswith("__") and name not in _ASKED:
            raise AttributeError(name)
        return self._judge.attribute(self, name)

    def __setattr__(self, name, value):
        self._do("setattr", name, value)

    def _do(self, what, *given):
        return self._judge.operation(self, what, given)

    def __iter__(self):
        items = self._do("iter")
        # An iterator is its own, and has no length.
        return items if self._made or items is self else self._counted(items)

    def _counted(self, items):
        """The items, as many as the object said it has: it must not say one thing and give another."""
        count = 0
        for count, item in enumerate(items, 1):
            if count > self._said(count):
                break
            yield item
        if self._said(count) != count:
            raise self._judge.unreadable("the result's length and its items disagree")

    def _said(self, otherwise):
        length = self._length
        return length[0] if length is not None and length[1] == self._judge.calls else otherwise

    def __next__(self):
        return self._do("next")

    def __len__(self):
        length = self._do("len")
        if not self._made:
            object.__setattr__(self, "_length", (length, self._judge.calls))
        return length

    def __getitem__(self, key):
        return self._do("item", key)

    def __setitem__(self, key, value):
        self._do("setitem", key, value)

    def __delitem__(self, key):
        self._do("delitem", key)

    def __contains__(self, item):
        # Comparing is the judge's: what the tests look for is what they expect.
        try:
            items = iter(self)
        except TypeError:
            if not self._made:
                raise
            return bool(self._do("contains", item))
        return any(each is item or each == item for each in items)

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

    def __copy__(self):
        return self._do("copy")

    def __deepcopy__(self, _):
        return self._do("deepcopy")

    def __await__(self):
        return self._do("run")
        yield

    @property
    def __doc__(self):
        return self._judge.attribute(self, "__doc__")

    # Plain data is of no class of the program's; asking would tell the program what is expected.
    def __instancecheck__(self, value):
        return isinstance(value, (Remote, Derived)) and bool(self._do("isinstance", value))

    def __subclasscheck__(self, kind):
        return isinstance(kind, Remote) and bool(self._do("issubclass", kind))

    # Equality is never asked of the program: it would say yes.
    def __eq__(self, other):
        if not isinstance(other, Remote):
            return False
        if self._target == other._target:
            return True
        # By its own class's equality the program would decide; a stored object is only looked for.
        now = self._judge.moment()
        fresh = now is not None and now in (self._born if self._made else None, other._born if other._made else None)
        if fresh or self._made and other._made:
            raise self._judge.foreign("the tests compare objects of the program's own class")
        return False

    def __hash__(self):
        return hash(self._target)

    def _reckon(self, what, *given):
        """An operator of an object that the tests made; so is then what comes of it."""
        if not self._made:
            return NotImplemented
        result = self._do(what, *given)
        if isinstance(result, Remote):
            result._make()
        return result

    def _order(self, what, other):
        # Only among themselves: anything else that the tests compare with is what they expect.
        if self._made and isinstance(other, Remote) and other._made:
            return bool(self._do(what, other))
        return NotImplemented


def _unary(name):
    def operator(self):
        result = self._reckon(name)
        if result is NotImplemented:
            raise TypeError("bad operand type: %r" % self._kind)
        return result

    return operator


def _binary(name):
    return lambda self, other: self._reckon(name, other)


def _ordering(name):
    return lambda self, other: self._order(name, other)


for _name in ARITHMETIC:
    setattr(Remote, "__%s__" % _name, _binary(_name))
    setattr(Remote, "__r%s__" % _name, _binary("r" + _name))
for _name in UNARY:
    setattr(Remote, "__%s__" % _name, _unary(_name))
for _name in ORDERINGS:
    setattr(Remote, "__%s__" % _name, _ordering(_name))


class RemoteData(Remote):
    # An object whose class derives from a built-in that changes: its value is looked up anew.

    __slots__ = ()

    def _plain(self):
        plain = self._do("plain")
        if isinstance(plain, (Remote, Derived)) or type(plain) is not self.__class__:
            raise self._judge.unreadable("the value of an object is not of its class")
        return plain

    def __eq__(self, other):
        return self._plain() == (other._plain() if isinstance(other, RemoteData) else other)

    __hash__ = None

    def __iter__(self):
        return iter(self._plain())

    def __len__(self):
        return len(self._plain())

    def __bool__(self):
        return bool(self._plain())

    def __contains__(self, item):
        return item in self._plain()


class Derived:
    """Plain data whose class, in the program, derives from a built-in; what else it has is there."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote.__getattr__(name)

    def __str__(self):
        return self._remote._do("str")

    def __repr__(self):
        return self._remote._do("repr")

    def __copy__(self):
        return self

    def __deepcopy__(self, _):
        return self


def _remote_data(base):
    """What `isinstance` takes for an object of the built-in class, as it is in the program."""
    return type(base.__name__, (RemoteData,), {"__slots__": (), "__class__": property(lambda self: base)})


_CHANGING = {base: _remote_data(base) for base in values.BASES if issubclass(base, values.MUTABLE)}
_FIXED = {base: type(base.__name__, (Derived, base), {}) for base in values.BASES}


def derived(remote, plain, making):
    """The object that `remote` is, of a class that derives from the type of `plain`.

    One that tests make and go on to change stays remote; what a program returns is the value it had.
    """
    base = type(plain)
    if making and base in _CHANGING:
        return _CHANGING[base](remote._judge, remote._target, remote._kind)
    kind = _FIXED.get(base)
    if kind is None:
        raise ValueError("no class derives from that of such a value")
    if base.__module__ == "datetime":
        value = kind.__new__(kind, *values.Writer(None).write(plain, 0)[2:])
    elif base is values.fractions.Fraction:
        value = kind.__new__(kind, plain.numerator, plain.denominator)
    elif base is values.collections.defaultdict:
        value = kind(None, plain)
    elif base in _CHANGING:
        value = kind(plain)
    else:
        value = kind.__new__(kind, plain)
    value._remote = remote
    return value
