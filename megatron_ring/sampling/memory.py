"""Keys and values of the documents in work, so that a token costs one token.

Letters: S tokens in a row · N documents · L tokens that there is room for · H query heads and G
key/value heads on this rank · R head width · Q query heads of a key/value head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ring.kernels.attention import Attend, Segments
from megatron_ring.model.attention import PackedSelfAttention
from megatron_ring.model.ling import LingModel

BLOCK = 64  # tokens that the room for keys and values grows by


class Memory:
    """Which documents are remembered, one object for all layers of a rank.

    Document n has place n of `places`. A pass either reads whole documents (`read` is called before
    it) or goes on with the next token of every document (`go_on`).
    """

    def __init__(self, places: int, device: torch.device) -> None:
        self.places, self.device = places, device
        self.layers: list[LayerMemory] = []
        self.lengths: list[int] = []  # of the documents, in the order of their places
        self.reading = True
        self.new: list[tuple[int, slice]] = []  # places, and their tokens of the row that is read
        self.room = 0  # L
        self.last_N = self.known_NL = torch.empty(0)

    def read(self, lengths: list[int], owners: list[int]) -> None:
        """The coming row holds documents of `lengths`; the next places remember `owners` of them.

        Several places may remember one document: samples of one prompt.
        """
        starts = [sum(lengths[:n]) for n in range(len(lengths))]
        spans = [slice(s, s + n) for s, n in zip(starts, lengths, strict=True)]
        first, self.reading = len(self.lengths), True
        self.new = [(first + i, spans[owner]) for i, owner in enumerate(owners)]
        self.lengths += [lengths[owner] for owner in owners]
        self._make_room()

    def go_on(self) -> None:
        """The coming row begins with the next token of every document."""
        self.reading, self.new = False, []
        self.lengths = [length + 1 for length in self.lengths]
        self._make_room()
        lengths_N = torch.tensor(self.lengths, device=self.device, dtype=torch.long)
        longest = -(-max(self.lengths, default=0) // BLOCK) * BLOCK
        self.last_N = lengths_N - 1
        self.known_NL = torch.arange(longest, device=self.device) < lengths_N[:, None]

    def leave(self, place: int) -> None:
        """Forget a document; the last one takes its place."""
        last = len(self.lengths) - 1
        self.lengths[place] = self.lengths[last]
        self.lengths.pop()
        for layer in self.layers if place < last else ():
            layer.keys_NGLR[place] = layer.keys_NGLR[last]
            layer.values_NGLR[place] = layer.values_NGLR[last]

    def _make_room(self) -> None:
        self.room = max(self.room, -(-max(self.lengths, default=0) // BLOCK) * BLOCK)


class LayerMemory:
    """One layer's attention with the keys and values that it has seen."""

    def __init__(self, attend: Attend, memory: Memory) -> None:
        self.attend, self.memory = attend, memory
        self.keys_NGLR = self.values_NGLR = torch.empty(0, 0, 0, 0)

    def __call__(self, q_SHR: Tensor, k_SGR: Tensor, v_SGR: Tensor, segments: Segments) -> Tensor:
        self._make_room(k_SGR)
        if self.memory.reading:
            for place, span in self.memory.new:
                length = span.stop - span.start
                self.keys_NGLR[place, :, :length] = k_SGR[span].transpose(0, 1)
                self.values_NGLR[place, :, :length] = v_SGR[span].transpose(0, 1)
            return self.attend(q_SHR, k_SGR, v_SGR, segments)
        known_NL, last_N = self.memory.known_NL, self.memory.last_N
        N, L = known_NL.shape
        each = torch.arange(N, device=last_N.device)
        self.keys_NGLR[each, :, last_N] = k_SGR[:N]
        self.values_NGLR[each, :, last_N] = v_SGR[:N]
        out_SHR = torch.zeros_like(q_SHR)  # behind the documents the row is padding
        if N:
            # The query heads that share a key/value head stand where a row's tokens would.
            q_NGQR = q_SHR[:N].view(N, k_SGR.shape[1], -1, q_SHR.shape[2])
            kept = (x[:N, :, :L] for x in (self.keys_NGLR, self.values_NGLR))
            out_NGQR = F.scaled_dot_product_attention(
                q_NGQR, *kept, attn_mask=known_NL[:, None, None]
            )
            out_SHR[:N] = out_NGQR.reshape(N, *q_SHR.shape[1:])
        return out_SHR

    def _make_room(self, like_SGR: Tensor) -> None:
        """Zeros where nothing was: what is masked must still be a number."""
        more = self.memory.room - self.keys_NGLR.shape[2]
        if self.keys_NGLR.shape[0] == 0:
            shape = (self.memory.places, like_SGR.shape[1], more, like_SGR.shape[2])
            self.keys_NGLR, self.values_NGLR = (like_SGR.new_zeros(shape) for _ in range(2))
        elif more:
            self.keys_NGLR = F.pad(self.keys_NGLR, (0, 0, 0, more))
            self.values_NGLR = F.pad(self.values_NGLR, (0, 0, 0, more))


@contextmanager
def remembering(stages: list[LingModel], places: int) -> Iterator[Memory]:
    """Inside, all layers of these model chunks remember up to `places` documents."""
    layers = [m for s in stages for m in s.modules() if isinstance(m, PackedSelfAttention)]
    memory = Memory(places, next(stages[0].parameters()).device)
    memory.layers = [LayerMemory(layer.attend, memory) for layer in layers]
    for layer, own in zip(layers, memory.layers, strict=True):
        layer.attend = own
    try:
        yield memory
    finally:
        for layer, own in zip(layers, memory.layers, strict=True):
            layer.attend = own.attend
