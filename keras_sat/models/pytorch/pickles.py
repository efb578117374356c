"""A stack machine that reads pickles and imports nothing.

A pickle is a program. Python's own reader imports what the program names, calls it, and sets attributes of what it
returns. That is why an untrusted pickle can do anything. This reader makes numbers, text and containers itself. Every
name that a pickle holds goes to `find`, and a pickle can call nothing but the `Builder` objects that `find` returns.
The opcodes and their arguments come from Python's `pickletools`, which parses a pickle without running it.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any


class Unreadable(ValueError):
    """Why a file cannot be read, as the rest of a sentence that begins with the file's path."""


@dataclasses.dataclass(frozen=True)
class Builder:
    """A function that a pickle may call, under the name that the pickle has for it."""

    name: str
    function: Callable[..., Any]


# Opcodes that push their own argument: a number, text or bytes.
LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
# Opcodes that replace the objects above the mark by one container of them.
CONTAINERS: dict[str, Callable[[list], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": lambda items: dict(_pairs(items)),
    "FROZENSET": frozenset,
}
LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
WITHOUT_EFFECT = {"PROTO", "FRAME", "STOP", "READONLY_BUFFER"}


class Unpickler:
    """Reads pickles. A subclass says what a pickle may name.

    The opcodes that a file of weights does not need are refused: those of old classes (`OBJ`, `INST`), of classes with
    keyword arguments (`NEWOBJ_EX`), of the extension registry (`EXT1`) and of data outside the pickle (`NEXT_BUFFER`).
    """

    def find(self, module: str, name: str) -> Any:
        """Returns the object for a name of the pickle: a `Builder`, or a value. Raises Unreadable for other names."""
        raise Unreadable(f"names {module}.{name}, which is refused.")

    def stored(self, identifier: Any) -> Any:
        """Returns the object for a persistent identifier: what the file stores outside the pickle."""
        raise Unreadable(f"refers to data outside its pickle ({identifier!r}), where there is none.")

    def set_state(self, instance: Any, state: Any) -> None:
        """Gives an object its state. Raises Unreadable if objects of this type have none."""
        raise Unreadable(f"sets the attributes of an object of type {type(instance).__name__}, which is refused.")

    def load(self, stream: Any) -> Any:
        """Returns the object of one pickle.

        Args:
            stream: a binary file, BytesIO or mmap at the pickle's first byte. It ends up behind the pickle's last byte.

        Raises:
            Unreadable: if the pickle names or does what is not allowed.
            Exception: any other, if the pickle is damaged.
        """
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            self._run(opcode.name, argument)
        return self._stack.pop()

    def _run(self, name, argument):
        stack = self._stack
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in CONTAINERS:
            items = self._above_mark()
            self._stack.append(CONTAINERS[name](items))
        elif name in LENGTHS:
            stack.append(tuple([stack.pop() for _ in range(LENGTHS[name])][::-1]))
        elif name in PUTS:
            self._memo[argument] = stack[-1]
        elif name in GETS:
            stack.append(self._memo[argument])
        elif name in ACTIONS:
            getattr(self, ACTIONS[name])(argument)
        elif name not in WITHOUT_EFFECT:
            raise Unreadable(f"uses {name} of the pickle format, which no file of weights needs.")

    def _above_mark(self):
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _mark(self, _):
        self._outer.append(self._stack)
        self._stack = []

    def _pop(self, _):
        if self._stack:
            self._stack.pop()
        else:
            self._above_mark()

    def _pop_mark(self, _):
        self._above_mark()

    def _duplicate(self, _):
        self._stack.append(self._stack[-1])

    def _memoize(self, _):
        self._memo[len(self._memo)] = self._stack[-1]

    def _append(self, _):
        self._extend([self._stack.pop()], list)

    def _appends(self, _):
        self._extend(self._above_mark(), list)

    def _add_items(self, _):
        self._extend(self._above_mark(), set)

    def _extend(self, items, kind):
        target = self._stack[-1]
        if type(target) is not kind:
            raise Unreadable(f"adds items to an object of type {type(target).__name__}, not to a {kind.__name__}.")
        target.extend(items) if kind is list else target.update(items)

    def _set_item(self, _):
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _set_items(self, _):
        self._update(self._above_mark())

    def _update(self, items):
        if not isinstance(self._stack[-1], dict):
            raise Unreadable(f"sets items of an object of type {type(self._stack[-1]).__name__}, not of a dict.")
        self._stack[-1].update(_pairs(items))

    def _global(self, argument):
        self._stack.append(self.find(*argument.split(" ", 1)))

    def _stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Unreadable("is damaged: its pickle has a name that is no text.")
        self._stack.append(self.find(module, name))

    def _instance(self, argument):
        self.find(*argument.split(" ", 1))  # what is refused is refused by its name
        raise Unreadable(f"makes an object of an old class ({argument}), which is refused.")

    def _call(self, _):
        arguments, builder = self._stack.pop(), self._stack.pop()
        if not (isinstance(builder, Builder) and isinstance(arguments, tuple)):
            raise Unreadable(f"calls an object of type {type(builder).__name__}, which is refused.")
        self._stack.append(builder.function(*arguments))

    def _build(self, _):
        state = self._stack.pop()
        self.set_state(self._stack[-1], state)

    def _persistent(self, _):
        self._stack.append(self.stored(self._stack.pop()))


# The methods that run the other opcodes.
ACTIONS = {
    "MARK": "_mark",
    "POP": "_pop",
    "POP_MARK": "_pop_mark",
    "DUP": "_duplicate",
    "MEMOIZE": "_memoize",
    "APPEND": "_append",
    "APPENDS": "_appends",
    "ADDITEMS": "_add_items",
    "SETITEM": "_set_item",
    "SETITEMS": "_set_items",
    "GLOBAL": "_global",
    "STACK_GLOBAL": "_stack_global",
    "INST": "_instance",
    "REDUCE": "_call",
    "NEWOBJ": "_call",
    "BUILD": "_build",
    "BINPERSID": "_persistent",
}


def _pairs(items):
    if len(items) % 2:
        raise Unreadable("is damaged: its pickle has a key without a value.")
    return zip(items[::2], items[1::2])
