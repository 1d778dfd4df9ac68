"""What a fit leaves to the next one."""
from __future__ import annotations

import numpy as np

from . import _core, arrays
from .pace import Pace


class Workspace:
    """Memory of a fit, kept for the next one of the same model unless it is large: fresh pages cost more than a small step. And how many threads
    were fastest."""

    KEPT_BYTES = 256 << 20

    def __init__(self) -> None:
        self._program: _core.Program | None = None
        self._arrays: dict[str, np.ndarray] = {}
        self._pace: Pace | None = None
        self._choices = 0, 0

    def use(self, program: _core.Program) -> _core.Program:
        """The program whose memory is kept from now on."""
        if self._program is not None and self._program is not program:
            self._program.release()
            self._pace = None
        self._program = program
        return program

    def pace(self, choices: tuple[int, int]) -> Pace:
        """What has been learned about these numbers of threads for the program in use."""
        if self._pace is None or choices != self._choices:
            self._pace, self._choices = Pace(*choices), choices
        return self._pace

    def array(self, role: str, like: np.ndarray) -> np.ndarray:
        """The array of this role: zeros at first, what it held afterwards."""
        array = self._arrays.get(role)
        if array is None or array.size != like.size or array.dtype != like.dtype:
            array = self._arrays[role] = arrays.aligned_zeros(like.size, like.dtype)
        return array

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return (0 if self._program is None else self._program.nbytes) + sum(array.nbytes for array in self._arrays.values())

    def trim(self) -> None:
        """After a fit: gives back what is more than is worth keeping."""
        if self._program is not None and self.nbytes > self.KEPT_BYTES:
            self._program.release()
            self._arrays.clear()
