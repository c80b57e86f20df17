"""A limit on the memory that code from a file may take, such as the constants that ONNX Runtime computes for a graph."""

import contextlib
from collections.abc import Iterator

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


@contextlib.contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Let this process allocate only so much more memory inside the block; allocations beyond it fail with an error.

    It limits the private memory of the whole process (``RLIMIT_DATA``, Linux 4.7 and later), so other threads should be idle.
    On other systems it does nothing.

    Args:
        more: Bytes beyond what the process holds now.
    """
    held = _private_memory()
    if resource is None or held is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    lowest = min((limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY), default=held + more)
    resource.setrlimit(resource.RLIMIT_DATA, (min(held + more, lowest), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_memory() -> int | None:
    """Return the bytes that count towards ``RLIMIT_DATA``, or None where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:")), None)
    except OSError:
        return None
