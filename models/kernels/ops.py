"""Custom operators of this package, each registered once however often its module is imported.

`from models.decoder import Decoder` in the repository's folder imports these files a second time, beside
`cubelet.models.decoder`: the operator that is there already is then taken.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("cubelet", "FRAGMENT")


def define_op(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    keys: tuple[str, ...] = ("CompositeExplicitAutograd",),
) -> Callable[..., Tensor]:
    """`torch.ops.cubelet.<name>`, registered unless it is there.

    Defined the plain way: `torch.library.custom_op` adds checks to each call that take longer than a small rotation.

    Args:
        name: of the operator.
        schema: its arguments and result in torch's notation, without the name: "(Tensor x) -> Tensor".
        implementation: the function for the dispatch `keys`; it returns fresh memory.
        fake: returns an empty tensor of the result's shape, dtype and strides.
        backward, setup_context: as in `torch.library.register_autograd`; None where nothing is differentiable.
        keys: dispatch keys that the implementation serves.
    """
    if not hasattr(torch.ops.cubelet, name):
        full = f"cubelet::{name}"
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in keys:
            _LIBRARY.impl(name, implementation, key)
        torch.library.register_fake(full, fake, lib=_LIBRARY)
        if backward is not None:
            torch.library.register_autograd(full, backward, setup_context=setup_context, lib=_LIBRARY)
    return getattr(torch.ops.cubelet, name)
