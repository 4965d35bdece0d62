"""FSDP2: weights, gradients and optimizer states split over the devices, a block gathered only while it computes.

`FullyShard` is Lightning's ModelParallelStrategy with the sizes of plain data parallelism and one-file checkpoints;
`shard` says where the model is cut. Blocks are the units; the embedding, which starts and ends the computation, stays
gathered from the first to the last.
"""

import functools
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method


class FullyShard(ModelParallelStrategy):
    """Shards over all devices of all machines, without tensor parallelism, whatever their number.

    Args:
        save_distributed_checkpoint: a folder with a file from each rank instead of one file. Faster for models that
            one machine's memory cannot hold, but written in place: a kill while writing loses it, and it is not found
            by `--ckpt_path last`.
        options: see ModelParallelStrategy (process_group_backend, timeout, and the sizes).
    """

    def __init__(
        self,
        data_parallel_size: int | Literal["auto"] = "auto",
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            data_parallel_size=data_parallel_size,
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            **options,
        )

    def setup_environment(self) -> None:
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes // int(self._tensor_parallel_size)
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """As in Lightning, but a parameter that has had no gradient yet may be without a state in the optimizer.

        Raises:
            ValueError: the weights do not fit; told by the names, in one sentence.
        """
        assert self.lightning_module is not None
        assert self.model is not None
        path = Path(self.broadcast(checkpoint_path))
        if (path / ".metadata").is_file():
            _start_anew_where_ranks_differ(path, self.model, self.optimizers)
        strict = self.lightning_module.strict_loading
        if path.is_dir() or not strict:
            return super().load_checkpoint(path, weights_only=weights_only)
        stored = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        if missed := stored["state_dict"].keys() ^ self.model.state_dict().keys():
            raise ValueError(
                f"the checkpoint {path} does not fit this model: {len(missed)} names stand in only one of them, the "
                f"first is {min(missed)}"
            )
        # Lightning's one switch is for weights and optimizers alike.
        self.lightning_module.strict_loading = False
        try:
            rest = super().load_checkpoint(path, weights_only=weights_only)
        finally:
            self.lightning_module.strict_loading = strict
        # To make room for the states, torch takes a step with zero gradients: what it made without need goes again.
        for optimizer, saved in zip(self.optimizers, stored.get("optimizer_states", ()), strict=False):
            for number, parameter in enumerate(self.model.parameters()):
                if number not in saved["state"]:
                    optimizer.state.pop(parameter, None)
        return rest


def _start_anew_where_ranks_differ(path: Path, model: nn.Module, optimizers: list[Any]) -> None:
    """Leave out of the optimizers' states what a checkpoint of another number of ranks holds in another size.

    Such is what each rank records of its own shard (the windows of FAM along time); the optimizer begins it again.
    """
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    names = {parameter: name for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        get_optimizer_state_dict(model, optimizer)  # makes the states where there are none yet
        for parameter, state in optimizer.state.items():
            for key, value in list(state.items()):
                size = getattr(stored.get(f"optimizer_{number}.state.{names[parameter]}.{key}"), "size", None)
                if isinstance(value, Tensor) and size is not None and size != value.shape:
                    del state[key]


def shard(decoder: nn.Module, mesh: Any, policy: MixedPrecisionPolicy | None = None, compile: bool = False) -> None:
    """Cut a decoder for FSDP2, in place.

    Parameters without a dimension cannot be cut; each rank keeps them whole, and their gradients are averaged here.

    Args:
        decoder: has `blocks`, and is entered by `features` rather than `forward` in training.
        mesh: one dimension of a device mesh.
        policy: dtypes in which blocks compute and gradients are reduced; None for the parameters' own.
        compile: compile each block (the gathering between blocks cannot be compiled).
    """
    scalars = {p for p in decoder.parameters() if p.ndim == 0}
    for parameter in scalars:
        parameter.register_hook(functools.partial(_mean, mesh.get_group()))
    options = {"mesh": mesh, "mp_policy": policy or MixedPrecisionPolicy(), "ignored_params": scalars}
    for block in decoder.blocks:  # pyright: ignore[reportGeneralTypeIssues]
        if compile:
            block.compile()
        fully_shard(block, **options)
    fully_shard(decoder, **options)
    register_fsdp_forward_method(decoder, "features")


def _mean(group: Any, gradient: Tensor) -> Tensor:
    gradient = gradient / group.size()
    distributed.all_reduce(gradient, group=group)
    return gradient
