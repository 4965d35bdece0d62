import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from cubelet.common.sharded_tensors import to_full, to_local


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded_tensors_become_plain_ones(mesh):
    values = torch.arange(6.0)
    sharded = distribute_tensor(values, mesh, [Shard(0)])
    for plain in to_local(sharded), to_full(sharded):
        assert type(plain) is torch.Tensor
        assert torch.equal(plain, values)


def test_plain_tensors_stay_as_they_are():
    values = torch.arange(3.0)
    assert to_local(values) is values
    assert to_full(values) is values
