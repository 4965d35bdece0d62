"""Utterances that can be learned from: what is empty, too long, or shorter than CTC needs is left out and told."""

import itertools
import warnings

from cubelet.common.errors import ConfigError

from .utterance import SpeechCorpus, Utterance


def frames_needed(text: str) -> int:
    """Return how many frames CTC needs: one a character, and a blank between two equal ones."""
    return len(text) + sum(a == b for a, b in itertools.pairwise(text))


def keep_usable(corpus: SpeechCorpus, max_seconds: float, frame_seconds: float) -> SpeechCorpus:
    """Return the corpus without utterances that cannot be learned from; what is gone stands in `left_out`."""
    left_out = {reason: list(places) for reason, places in corpus.left_out.items()}

    def usable(u: Utterance) -> bool:
        if not u.text:
            reason = "empty transcript"
        elif u.seconds > max_seconds:
            reason = f"longer than {max_seconds:g} s"
        elif u.seconds < frames_needed(u.text) * frame_seconds:
            reason = f"fewer frames of {frame_seconds:g} s than characters"
        else:
            return True
        left_out.setdefault(reason, []).append(u.place or u.path)
        return False

    train = [u for u in corpus.train if usable(u)]
    held_out = {split: [u for u in rows if usable(u)] for split, rows in corpus.held_out.items()}
    for split, rows in {"train": train, **held_out}.items():
        if not rows:
            reasons = "; ".join(f"{len(p)} × {reason} (first: {p[0]})" for reason, p in left_out.items())
            raise ConfigError(f"corpus {corpus.name} leaves no utterance of split {split}: {reasons or 'it is empty'}")
    return SpeechCorpus(corpus.name, train, held_out, left_out)


def report_left_out(corpus: SpeechCorpus) -> None:
    """Say in one line what was left out and where the first of each kind stands."""
    if corpus.left_out:
        kinds = "; ".join(f"{len(p)} × {reason} (first: {p[0]})" for reason, p in corpus.left_out.items())
        warnings.warn(f"corpus {corpus.name} leaves out {kinds}", stacklevel=4)
