"""Slow, obvious references for speech: mel filters, CTC by summing over all paths, alignment by trying all."""

import itertools
import math

import numpy as np


def slaney_mel(hertz):
    """One frequency at a time."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def collapse(path, blank=0):
    """Without repetitions, then without blanks."""
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def all_paths(frames, vocabulary, text):
    """Every path of `frames` tokens that collapses to `text`."""
    return [p for p in itertools.product(range(vocabulary), repeat=frames) if collapse(p) == tuple(text)]


def path_score(log_probs, path):
    """Log-probability of one path; log_probs (frames, vocabulary)."""
    return sum(float(log_probs[t, token]) for t, token in enumerate(path))


def ctc_score(log_probs, text):
    """Log-probability of a text: the sum over all its paths."""
    scores = [path_score(log_probs, p) for p in all_paths(*log_probs.shape, text)]
    return float(np.logaddexp.reduce(scores)) if scores else -math.inf


def best_path(log_probs, text):
    """The likeliest path of a text."""
    return max(all_paths(*log_probs.shape, text), key=lambda p: path_score(log_probs, p))
