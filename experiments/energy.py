"""Energy of a whole run, by CodeCarbon where it is installed (`pip install "jdss-jax[energy]"`).

Without RAPL, as in most virtual machines, CodeCarbon models the CPU's power from its load and its
rated power, and it models the memory's almost everywhere: then the figure is an estimate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What CodeCarbon reads from hardware, by its own name for the mode; the rest it models.
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
    # The country is required, and used for emissions only, which are not read.
    quiet = {"output_methods": [], "log_level": "critical"}
    tracker = codecarbon.OfflineEmissionsTracker(country_iso_code="USA", **quiet)
    tracker.start()
    try:
        yield found
    finally:
        tracker.stop()
        parts = {}
        for device in tracker._hardware:
            kind, mode = type(device).__name__, getattr(device, "_mode", "model")
            parts[kind] = {"GPU": "NVML"}.get(kind) or _METERED.get(mode, f"{mode} (modelled)")
        method = ", ".join(f"{kind}: {parts[kind]}" for kind in sorted(parts))
        kilowatt_hours = tracker.final_emissions_data.energy_consumed
        found |= {"joules": 3.6e6 * kilowatt_hours, "method": method}
        found["is_estimate"] = "modelled" in method
