"""Immutable sequences of numbers that behave as tuples do and take the memory of arrays.

An episode of the paper's size has 16.8 million response tokens. As tuples of Python numbers the id, two log-probs and
two masks of a token take about 110 bytes, and seconds to send from one process to another; here 14, as a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np


class Numbers(Sequence[Any]):
    """Length, indexing, slices, iteration, ``+``, order, equality and hash of a tuple of Python numbers, also together
    with tuples. ``np.asarray`` gives the read-only array without a copy."""

    __slots__ = ("array",)
    dtype: ClassVar[Any]
    array: np.ndarray

    def __init__(self, values: Iterable[Any] = ()) -> None:
        array = self._packed(values if isinstance(values, np.ndarray | Numbers) else tuple(values))
        assert array.ndim == 1, array.shape
        array.setflags(write=False)
        self.array = array

    @classmethod
    def _packed(cls, values: Any) -> np.ndarray:
        return np.array(values, dtype=cls.dtype)

    @classmethod
    def of(cls, array: np.ndarray) -> Any:
        """The sequence of a read-only array of this type, which is not copied."""
        numbers = cls.__new__(cls)
        numbers.array = array
        return numbers

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        return self.of(self.array[index]) if isinstance(index, slice) else self.array[index].item()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array.tolist())

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, type(self) | tuple):
            return NotImplemented
        return type(self)(np.concatenate([self.array, type(self)(other).array]))

    def __radd__(self, other: Any) -> Any:
        return type(self)(other) + self if isinstance(other, tuple) else NotImplemented

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbers):
            return np.array_equal(self.array, other.array)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __lt__(self, other: Any) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        length = min(len(self), len(other))
        different = np.flatnonzero(self.array[:length] != other.array[:length])
        first = different[0] if len(different) else None
        return len(self) < len(other) if first is None else bool(self.array[first] < other.array[first])

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_bytes, (type(self), self.array.dtype.char, self.array.tobytes())


def _from_bytes(kind: type[Numbers], dtype: str, data: bytes) -> Any:
    return kind.of(np.frombuffer(data, dtype))


if TYPE_CHECKING:  # what they can do is what tuples can: code is checked as if they were
    Ints = tuple[int, ...]
    Floats = tuple[float, ...]
    Flags = tuple[bool, ...]
else:

    class Ints(Numbers):
        """Token ids."""

        dtype = np.dtype(np.int32)

    class Floats(Numbers):
        """Log-probs, exactly: as float32, which engines and trainer give, or as float64 where that would round one."""

        dtype = np.dtype(np.float64)

        @classmethod
        def _packed(cls, values: Any) -> np.ndarray:
            given = np.array(values)
            if given.dtype == np.float32:
                return given
            exact = given.astype(np.float64)
            with np.errstate(over="ignore"):
                half = exact.astype(np.float32)
            return half if np.array_equal(half, exact, equal_nan=True) else exact

    class Flags(Numbers):
        """A mask over tokens."""

        dtype = np.dtype(np.bool_)
