"""Word and character error rates of several decodings at once."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.text import CharErrorRate, WordErrorRate

from cubelet.datamodules.speech import normalize_text

HEADS = ("best", "attention", "ctc")


class ErrorRates(nn.Module):
    """Word and character error rates of what each head writes, over a whole split and all ranks.

    References and texts are compared in the tokenizer's normal form (NFC, lower case). An utterance with an empty
    reference adds the words that were written to the errors and nothing to the length, so the rate of a split without
    any word is infinite where something was written, and 0 where not.

    Example:
        >>> rates = ErrorRates()
        >>> rates.update({"best": ["turn off the light"]}, ["turn on the light"])
        >>> rates.compute()["wer"]
        tensor(0.2500)
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.ModuleDict({head: WordErrorRate() for head in HEADS})
        self.characters = nn.ModuleDict({head: CharErrorRate() for head in HEADS})

    def update(self, texts: dict[str, list[str]], references: Sequence[str]) -> None:
        """Add utterances: head → texts, and what was said."""
        said = [normalize_text(text) for text in references]
        for head, written in texts.items():
            for metric in (self.words[head], self.characters[head]):
                metric.update([normalize_text(text) for text in written], said)  # pyright: ignore[reportCallIssue]

    def compute(self) -> dict[str, Tensor]:
        """Return `wer`, `cer` of the decoding asked for, and the same of each head, then start anew."""
        rates = {}
        for name, metrics in (("wer", self.words), ("cer", self.characters)):
            for head, metric in metrics.items():
                assert isinstance(metric, Metric)
                with warnings.catch_warnings():
                    # A rank may have had nothing to measure; it takes part in the sum all the same.
                    warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before")
                    rate = metric.compute()
                rates[name if head == "best" else f"{head}_{name}"] = torch.where(rate.isnan(), 0.0, rate)
                metric.reset()
        return rates
