"""Files of tokens, written byte by byte as their formats' authors describe them."""

import struct
from pathlib import Path


def write_nanogpt(path: Path, ids: list[int]) -> None:
    """nanoGPT's `.bin`: nothing but uint16."""
    path.write_bytes(b"".join(struct.pack("<H", i) for i in ids))


def write_megatron(prefix: Path, documents: list[list[int]], code: int = 8) -> None:
    """Megatron-LM's `.bin` and `.idx` (megatron/core/datasets/indexed_dataset.py): code 8 is uint16, 4 is int32."""
    form = {8: "<H", 4: "<i"}[code]
    size = struct.calcsize(form)
    prefix.with_suffix(".bin").write_bytes(b"".join(struct.pack(form, i) for document in documents for i in document))
    lengths = [len(document) for document in documents]
    pointers = [sum(lengths[:n]) * size for n in range(len(lengths))]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    index += b"".join(struct.pack("<i", n) for n in lengths) + b"".join(struct.pack("<q", p) for p in pointers)
    index += b"".join(struct.pack("<q", n) for n in range(len(lengths) + 1))
    prefix.with_suffix(".idx").write_bytes(index)
