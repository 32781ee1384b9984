"""What a pickle of another program would cost, from its opcodes alone: nothing in it is made. No torch.

A few hundred bytes can describe a tuple of 2^60 parts, because parts may be shared. It takes no memory, but its hash,
its text and any comparison go through all of its parts.
"""

import pickletools
from typing import BinaryIO

from core import UserError

BLOCK = 16  # bytes of a text or an array that count as one value
LARGE = 64  # bits of a whole number; larger ones can be made to have equal hashes, so a dict of them is slow
GETS, PUTS = ('GET', 'BINGET', 'LONG_BINGET'), ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE')
CHANGES = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'BUILD')  # of the value below the others
PAIRS = ('SETITEM', 'SETITEMS', 'DICT')  # take keys and values in turn


class _Value:
    """A value on the stack: its number of parts if no part were shared, whether it has none, and whether it is one."""

    __slots__ = ('is_part', 'is_single', 'parts')

    def __init__(self, parts: int, is_single: bool):
        self.parts, self.is_single, self.is_part = parts, is_single, False


def check_pickle(file: BinaryIO, size: int) -> None:
    """Read the pickle at the position of a file of `size` bytes, to its end.

    Raises UserError if using its values could take more time than their number of bytes justifies, or a key of a dict
    is other than a text or a number; ValueError, IndexError or KeyError if it is damaged.
    """
    stack, memo, cost, limit = [], {}, 0, 10_000 + BLOCK * size
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in GETS:
            stack.append(memo[argument])
        elif opcode.name in PUTS:
            memo[len(memo) if argument is None else argument] = _top(stack)
        elif opcode.name == 'MARK':
            stack.append(None)
        elif opcode.name == 'POP':
            stack.pop()
        else:
            changed, parts = _take(stack, opcode)
            made = 1 + _weight(argument) + _use(parts)
            cost += made
            if opcode.name in PAIRS and not all(key.is_single for key in parts[::2]):
                raise UserError('has keys that are neither text nor numbers: refused')
            if opcode.name == 'DUP':
                raise UserError('has two names for one value: refused')
            if cost > limit:
                raise UserError('describes more values than so few bytes can hold: refused')
            if changed:
                if changed.is_part:  # its parts have been counted
                    raise UserError('changes a value that is in another: refused')
                changed.parts += made
            elif opcode.stack_after:
                stack.append(_Value(made, not opcode.stack_before))


def _take(stack: list, opcode: pickletools.OpcodeInfo) -> tuple[_Value | None, list[_Value]]:
    """Return the value that an opcode changes, which stays, and the values that it takes from the stack."""
    before, parts = list(opcode.stack_before), []
    if pickletools.markobject in before:
        while (value := stack.pop()) is not None:
            parts.append(value)
        before = before[: before.index(pickletools.markobject)]
    changes = opcode.name in CHANGES
    for _ in before[changes:]:
        parts.append(_top(stack))
        stack.pop()
    return _top(stack) if changes else None, parts[::-1]


def _top(stack: list) -> _Value:
    if not stack or stack[-1] is None:
        raise IndexError('nothing on the stack')
    return stack[-1]


def _use(parts: list[_Value]) -> int:
    """Mark values as parts of another one; return how many parts they have together."""
    for part in parts:
        part.is_part = True
    return sum(part.parts for part in parts)


def _weight(argument: object) -> int:
    """Return what the argument of an opcode counts beyond one value."""
    if isinstance(argument, int):
        return 1000 if argument.bit_length() > LARGE else 0
    return len(argument) // BLOCK if isinstance(argument, str | bytes | bytearray) else 0
