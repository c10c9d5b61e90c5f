"""Score the supervised tokens of encoded rows with a causal model: negative log-likelihood and entropy of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from cgd_ray.prompts.chat_encoder import Encoded

_LOGIT_BYTES = 2**29  # of the float32 logits that exist at a time


@dataclass(frozen=True)
class TokenScores:
    """Scores of one row's target tokens, in nats; both of shape (target tokens,)."""

    nll: npt.NDArray[np.float32]
    """Negative log-likelihood of each token, given all before it."""
    entropy: npt.NDArray[np.float32]
    """Entropy of the distribution that the token was predicted from."""


class Scorer:
    """A model that scores rows, on one device."""

    def __init__(self, folder: Path, device: str, dtype: str, threads: int, batch_tokens: int) -> None:
        """Load the model.

        Args:
            folder: directory of a Hugging Face model.
            device: "cpu" or "cuda".
            dtype: type of the weights, such as "float32"; logits are always float32.
            threads: CPU threads.
            batch_tokens: most tokens of a forward pass, padding included; one row may have more.
        """
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model = model.to(self._device).eval()
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def score(self, rows: Sequence[Encoded]) -> list[TokenScores]:
        """Return the scores of the rows, in their order.

        Rows of similar length share a pass. A row's scores do not depend on the others, but for rounding.
        """
        scores: dict[int, TokenScores] = {}
        for batch in self._batches(rows):
            scores.update(zip(batch, self._pass([rows[place] for place in batch]), strict=True))
        return [scores[place] for place in range(len(rows))]

    def _batches(self, rows: Sequence[Encoded]) -> Iterator[list[int]]:
        """Yield places of rows, longest first, that fit into one pass."""
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place].input_ids))
        vocabulary = self._model.config.get_text_config().vocab_size
        batch: list[int] = []
        targets = 0
        for place in order:
            row = rows[place]
            most = max(targets, len(row.input_ids) - row.target_start)
            longest = len(rows[batch[0]].input_ids) if batch else len(row.input_ids)
            is_full = (len(batch) + 1) * longest > self._batch_tokens
            is_large = (len(batch) + 1) * (most + 1) * vocabulary * 4 > _LOGIT_BYTES
            if batch and (is_full or is_large):
                yield batch
                batch, most = [], len(row.input_ids) - row.target_start
            batch.append(place)
            targets = most
        if batch:
            yield batch

    def _pass(self, rows: Sequence[Encoded]) -> list[TokenScores]:
        """Score rows padded on the left, so that all targets end in the last column."""
        longest = max(len(row.input_ids) for row in rows)
        most = max(len(row.input_ids) - row.target_start for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, longest - len(row.input_ids) :] = torch.tensor(row.input_ids)
            mask[place, longest - len(row.input_ids) :] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        on_device = {name: tensor.to(self._device) for name, tensor in given.items()}
        logits = self._model(**on_device, logits_to_keep=most + 1, use_cache=False).logits
        found = []
        for place, row in enumerate(rows):
            count = len(row.input_ids) - row.target_start
            targets = on_device["input_ids"][place, longest - count :]
            found.append(_scores(logits[place, most - count : most], targets))
        return found


def _scores(logits: torch.Tensor, targets: torch.Tensor) -> TokenScores:
    """Score targets (tokens,) under logits (tokens, vocabulary)."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    nll = -log_probabilities.gather(1, targets[:, None])[:, 0]
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
    return TokenScores(nll.cpu().numpy(), entropy.cpu().numpy())
