"""Energy of a whole run, by CodeCarbon where it is installed (`pip install "jdss-jax[energy]"`).

Without RAPL, as in most virtual machines, CodeCarbon models the CPU's power from its load and its
rated power, and it models the memory's almost everywhere: then the figure is an estimate.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_JOULES_PER_KWH = 3.6e6
# How CodeCarbon knows the power of a processor, by its own name for the mode, and whether that is
# a reading from hardware.
_METERED = {"intel_rapl": "RAPL", "windows_emi": "EMI", "intel_power_gadget": "Power Gadget"}


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Yields a mapping that has `joules`, `method` and `is_estimate` at the end.

    It counts the whole machine, and stays empty where CodeCarbon is not installed. Nothing is sent
    anywhere, and no file is written.
    """
    found: dict[str, Any] = {}
    try:
        import codecarbon
    except ImportError:
        yield found
        return
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code="USA",  # required, and used for emissions only, which are not read
        output_methods=[],
        log_level="critical",
    )
    tracker.start()
    try:
        yield found
    finally:
        tracker.stop()
        joules = _JOULES_PER_KWH * tracker.final_emissions_data.energy_consumed
        found |= {"joules": joules, **describe(tracker)}


def describe(tracker: Any) -> dict[str, Any]:
    """What the figures of a tracker rest on, and whether any of it is modelled."""
    parts = {}
    for device in tracker._hardware:
        kind = type(device).__name__
        mode = getattr(device, "_mode", "model")
        parts[kind] = {"GPU": "NVML"}.get(kind) or _METERED.get(mode, f"{mode} (modelled)")
    method = ", ".join(f"{kind}: {parts[kind]}" for kind in sorted(parts))
    return {"method": method, "is_estimate": "modelled" in method}
