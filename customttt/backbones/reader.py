"""What the families share that have a text encoder: prompts that are kept once read, and nouns of another meaning."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from customttt.backbones.family import Family, visiting
from customttt.backbones.interface import PromptEmbeds, WordEmbedding
from customttt.errors import UsageError
from customttt.patch import replaced

KEPT = 32
"""How many readings are kept: of Wan 8 MB for each prompt."""


@dataclass
class TextReader(Family):
    """A loaded base; see `Backbone` for what each method promises."""

    text_encoder: Any
    tokenizer: Any
    _kept: OrderedDict[tuple[object, ...], PromptEmbeds] = field(default_factory=OrderedDict, init=False, repr=False)
    """What was read of the last prompts, in main memory: a large text encoder takes seconds to visit a GPU."""
    _means_another: bool = field(default=False, init=False, repr=False)

    @abstractmethod
    def read(self, prompts: Sequence[str]) -> PromptEmbeds:
        """What `embed` gives, read anew."""

    @abstractmethod
    def count_tokens(self, prompt: str) -> tuple[int, int]: ...

    @property
    @abstractmethod
    def vocabulary(self) -> nn.Embedding:
        """What the text encoder reads for each token."""

    def embed(self, prompts: Sequence[str]) -> PromptEmbeds:
        if self._means_another:
            return self.read(prompts)
        # The last bits of a reading depend on the prompts beside it, the threads and autocast.
        key = (*prompts, torch.get_num_threads(), torch.is_autocast_enabled(self.device.type))
        if key not in self._kept:
            self._kept[key] = self.read(prompts).cpu()
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key].to(self.device, copy=True)

    def word(self, noun: str) -> WordEmbedding:
        return self.vocabulary.weight[self._token(noun)].detach().float().clone()

    @contextmanager
    def meaning(self, noun: str, vector: WordEmbedding) -> Iterator[None]:
        self._means_another = True
        try:
            with _read_as(self.vocabulary, self._token(noun), vector), visiting(self.text_encoder, self.device):
                yield  # all of it stays on the device, for a backward pass, too
        finally:
            self._means_another = False

    def _token(self, noun: str) -> int:
        return int(self.tokenizer(noun, add_special_tokens=False).input_ids[-1])

    def tokens_of(self, prompt: str, word: str) -> list[int]:
        read, sought = self.tokenizer(prompt).input_ids, self.tokenizer(word, add_special_tokens=False).input_ids
        last = self.count_tokens(prompt)[1] - len(sought)  # where the end of the text stands at the latest
        starts = [at for at in range(min(len(read), last)) if read[at : at + len(sought)] == sought]
        if not starts:
            raise UsageError(f"The word '{word}' is not read in {prompt!r}; write it there as it is.")
        return [start + number for start in starts for number in range(len(sought))]


@contextmanager
def _read_as(table: nn.Embedding, token: int, vector: WordEmbedding) -> Iterator[None]:
    """A text encoder's table of words has `vector` for a token while this lasts; gradients reach it."""

    def read(ids: Tensor) -> Tensor:
        known = F.embedding(ids, table.weight)
        return torch.where((ids == token)[..., None], vector.to(known), known)

    with replaced([table], lambda _: read):
        yield
