"""Numbers of bytes as people read them."""


def format_bytes(count: float) -> str:
    """A number of bytes with three digits and a unit.

    Example:
        >>> format_bytes(950), format_bytes(1_234_567)
        ('950 bytes', '1.23 MB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
