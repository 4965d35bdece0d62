"""What data modules share: a checkpoint of other data is refused, few batches repeat, a rank knows its place."""

from types import SimpleNamespace

import pytest

from cubelet.common.errors import ConfigError
from cubelet.datamodules.base import ResumableDataModule


class Data(ResumableDataModule):
    """Data of a name, with a vocabulary of a name."""

    def __init__(self, corpus, vocabulary):
        super().__init__()
        self.names = {"corpus": corpus, "corpus_sha256": f"sha of {corpus}", "tokenizer_sha256": vocabulary}

    def state_dict(self):
        return self.names

    def load_state_dict(self, state_dict):
        self._check_state(state_dict, vocabulary="another vocabulary", data="text", hint=" (a hint)")


def with_trainer(data, **values):
    data.trainer = SimpleNamespace(**values)
    return data


def test_another_vocabulary_is_always_refused_and_another_corpus_only_for_training():
    theirs, ours = Data("plays", "letters"), Data("letters of a king", "letters")
    with pytest.raises(ConfigError, match=r"another vocabulary \(a hint\)"):
        Data("plays", "bytes").load_state_dict(theirs.state_dict())
    with pytest.raises(
        ConfigError,
        match=r"trained on another text \(corpus 'plays', sha256 sha of plays\) than this one \(corpus 'letters of a "
        r"king', sha256 sha of lette\); restore the text to resume, or start a new run \(a hint\)",
    ):
        ours.load_state_dict(theirs.state_dict())
    with_trainer(ours, state=SimpleNamespace(fn="validate")).load_state_dict(theirs.state_dict())
    Data("plays", "letters").load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(("few", "expected"), [(3, 3), (50, 10), (0.25, 2), (0.01, 1), (0, None)])
def test_few_batches_come_again_where_a_trainer_overfits_on_purpose(few, expected):
    class Order(list):
        repeat = None

    order = Order(range(10))
    with_trainer(Data("a", "b"), overfit_batches=few)._repeat_few(order)
    assert order.repeat == expected


def test_a_rank_knows_its_place_and_what_counts_its_batches():
    data = Data("a", "b")
    assert (data._place(), data._counter()) == ((0, 1), None)
    with_trainer(data, distributed_sampler_kwargs={"rank": 1, "num_replicas": 3})
    assert data._place() == (1, 3)
    device = SimpleNamespace(type="cuda")
    with_trainer(data, strategy=SimpleNamespace(root_device=device))
    assert data._loading() == {"num_workers": 0, "pin_memory": True}
