"""A key-value cache that grows in place; transformers' own is copied at every token."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values (R, H, L, D): views of a larger buffer.

    `room` is how many positions each enlargement adds beyond those needed at once.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.length = 0
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (R, H, Q, D) and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.buffers is None or self.length > self.buffers[0].shape[-2]:
            old = self.buffers or (key_states, value_states)
            self.buffers = (
                _enlarged(old[0], start, self.length + self.room),
                _enlarged(old[1], start, self.length + self.room),
            )
        self.buffers[0][:, :, start : self.length] = key_states
        self.buffers[1][:, :, start : self.length] = value_states
        return self._set_views(*self.buffers)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        if self.buffers is not None:
            self.buffers = (self.buffers[0][indices], self.buffers[1][indices])
            self._set_views(*self.buffers)

    def _set_views(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys[:, :, : self.length], values[:, :, : self.length]
        return self.keys, self.values


class GrowingCache(Cache):
    """One `GrowingLayer` per decoder layer."""

    def __init__(self, num_layers: int, room: int) -> None:
        super().__init__(layers=[GrowingLayer(room) for _ in range(num_layers)])


def _enlarged(old: Tensor, used: int, length: int) -> Tensor:
    rows, heads, _, width = old.shape
    new = old.new_empty(rows, heads, length, width)
    new[:, :, :used] = old[:, :, :used]
    return new
