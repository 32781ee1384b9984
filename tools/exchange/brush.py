"""The run-length code of Label Studio's brush: the package rle-pack of thi.ng/umbrella.

A stream of bits, the highest of a byte first: the number of values (32 bits), the bits of a value less 1 (5), the bits
of four kinds of lengths less 1 (4 each). Then tokens: a bit that says whether it is a run, the kind of its length (2),
the length less 1, and for a run one value, otherwise as many values as the length. The values are the red, green, blue
and alpha of each pixel, by rows. A pixel belongs to the object if its alpha is above 0.
"""

import numpy as np

KINDS = (3, 4, 8, 16)  # bits of a length, as Label Studio's converter chooses them
VALUE_BITS = 8
CHANNELS = 4


def encode(mask: np.ndarray) -> list[int]:
    """Return the bytes of a mask (h, w) bool."""
    flat = np.repeat(mask.reshape(-1), CHANNELS)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    parts = [f'{flat.size:032b}{VALUE_BITS - 1:05b}', *(f'{bits - 1:04b}' for bits in KINDS)]
    for length, value in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        while length:
            run = min(length, 2 ** KINDS[-1])
            kind = next(i for i, bits in enumerate(KINDS) if run <= 2**bits)
            parts.append(f'1{kind:02b}{run - 1:0{KINDS[kind]}b}{255 if value else 0:0{VALUE_BITS}b}')
            length -= run
    bits = ''.join(parts)
    count = -(-len(bits) // 8)
    return list(int(bits.ljust(8 * count, '0'), 2).to_bytes(count, 'big'))


def decode(code: object, size: tuple[int, int]) -> np.ndarray:
    """Return the mask (h, w) bool of a list of bytes. Raises ValueError if it is not a code of this size."""
    if not isinstance(code, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in code):
        raise ValueError('its "rle" is not a list of bytes')
    bits, total = _Bits(bytes(code)), CHANNELS * size[0] * size[1]
    count, value_bits = bits.read(32), bits.read(5) + 1
    kinds = [bits.read(4) + 1 for _ in range(4)]
    if count != total:
        raise ValueError(f'its "rle" has {count} values instead of {total}, four a pixel of {size[1]}x{size[0]}')
    values, at = np.zeros(total, bool), 0
    while at < total:
        is_run, length = bits.read(1), bits.read(kinds[bits.read(2)]) + 1
        if at + length > total:
            raise ValueError('its "rle" runs past the end of the mask')
        if is_run:
            values[at : at + length] = bits.read(value_bits) > 0
            at += length
            continue
        for _ in range(length):
            values[at] = bits.read(value_bits) > 0
            at += 1
    return values.reshape(*size, CHANNELS)[..., -1]


class _Bits:
    """Reads numbers from bits."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def read(self, count: int) -> int:
        start, end = self.at, self.at + count
        if end > 8 * len(self.content):
            raise ValueError('its "rle" ends too early')
        self.at = end
        last = -(-end // 8)
        return (int.from_bytes(self.content[start // 8 : last], 'big') >> (8 * last - end)) & ((1 << count) - 1)
