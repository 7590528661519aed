"""Energy in joules, measured by CodeCarbon where it is installed (`jdss[energy]`).

Nothing here may disturb a run: without CodeCarbon, or where its tracker does not start, the
meter reads None. The tracker runs offline, writes no files and logs nothing.
"""

import logging
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

JOULES_PER_KWH = 3.6e6

# CodeCarbon samples a modelled CPU's load once a second by itself and reads the counters when
# asked. This timer only has to be shorter than the wrap-around of a RAPL counter (minutes).
_SECONDS_BETWEEN_READINGS = 60

# How CodeCarbon knows the power of a processor, by its own name for the mode: what to call it,
# and whether it is a model instead of a reading from hardware.
_CPU_METHODS = {
    "intel_rapl": ("RAPL", False),
    "windows_emi": ("Energy Meter Interface", False),
    "intel_power_gadget": ("Power Gadget", False),
    "cpu_load": ("TDP and CPU load", True),
    "constant": ("TDP constant", True),
}


@dataclass(frozen=True)
class Energy:
    """Energy since a meter started.

    Attributes:
      joules: of the whole machine, in J: every process, the processors, the memory, and the GPUs
        that CodeCarbon sees.
      method: where the figure comes from, for example `"CPU: RAPL, RAM: model, GPU: NVML"`.
      is_estimate: True where the power of the CPU or the memory is modelled and not read from a
        counter. Without RAPL, as in most virtual machines, CodeCarbon models the CPU's power from
        its load and its rated power (TDP, from a table, and guessed for a processor that is not in
        it); and it models the memory's almost everywhere, so on Linux only the method tells
        whether the CPU's share was measured.

    Made by `jdss.reporting.EnergyMeter`.
    """

    joules: float
    method: str
    is_estimate: bool


class EnergyMeter:
    """Measures energy between `start` and `stop`; a trial's energy is a difference of readings.

    Starting probes the hardware, which takes some seconds the first time in a process, so start
    the meter before the clock. A reading takes about a millisecond.

    ```python
    with EnergyMeter() as meter:
        before = meter.read()
        ...
        after = meter.read()
    if before and after:
        joules = after.joules - before.joules
    ```

    One meter can be started again after it was stopped; it then counts from zero.
    """

    def __init__(self) -> None:
        self._tracker: Any = None
        self._handler: Any = None
        self._last: Energy | None = None

    def start(self) -> None:
        """Starts counting from zero. Warns, once, where CodeCarbon is there but fails."""
        self.stop()
        self._last = None
        try:
            self._tracker, self._handler = _start_tracker()
        except ImportError:
            return
        except Exception as error:
            _warn_once(f"energy is not measured: CodeCarbon did not start ({error})")
            return
        if self.read() is None:  # CodeCarbon swallows its exceptions; a silent tracker failed.
            self.stop()
            _warn_once(
                "energy is not measured: CodeCarbon gives no reading (it takes 3.3 or later)"
            )

    def read(self) -> Energy | None:
        """Energy since `start`, or None where it is not measured; after `stop`, the last value."""
        if self._tracker is not None:
            try:
                self._tracker.flush()  # measures, then hands the totals to the handler
                if self._handler.total_kwh is not None:
                    method, is_estimate = _describe(self._tracker)
                    joules = self._handler.total_kwh * JOULES_PER_KWH
                    self._last = Energy(joules, method, is_estimate)
            except Exception as error:
                _warn_once(f"energy is no longer measured: CodeCarbon failed ({error})")
                self._tracker = None
        return self._last

    def stop(self) -> None:
        """Stops counting; stopping twice, or before starting, does nothing."""
        if self._tracker is None:
            return
        self.read()
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            try:
                tracker.stop()
            except Exception as error:
                _warn_once(f"CodeCarbon did not stop cleanly ({error})")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _start_tracker() -> tuple[Any, Any]:
    import codecarbon
    from codecarbon.output_methods.base_output import BaseOutput

    class KeepTotal(BaseOutput):  # the public way to get at the totals while the tracker runs
        total_kwh: float | None = None

        def out(self, total: Any, delta: Any) -> None:
            self.total_kwh = total.energy_consumed

    # Importing CodeCarbon sets its log level, and building a tracker logs before it obeys
    # `log_level`.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    handler = KeepTotal()
    # Everything that a user's CodeCarbon configuration could turn into network traffic is off.
    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code="USA",  # required, and used for emissions only, which are not read
        cloud_provider=None,
        emissions_endpoint=None,
        electricitymaps_api_token=None,
        measure_power_secs=_SECONDS_BETWEEN_READINGS,
        api_call_interval=-1,
        tracking_mode="machine",
        output_methods=[],
        output_handlers=[handler],
        log_level="critical",
    )
    tracker.start()
    return tracker, handler


def _describe(tracker: Any) -> tuple[str, bool]:
    """What the figures of a started tracker rest on, and whether any of it is modelled."""
    parts: dict[str, str] = {}
    is_estimate = False
    for device in tracker._hardware:
        kind = type(device).__name__
        if kind == "CPU":
            parts["CPU"], modelled = _CPU_METHODS.get(device._mode, (str(device._mode), True))
        elif kind == "RAM":
            parts["RAM"], modelled = "model", True
        elif kind == "GPU":
            is_amd = any(type(gpu).__name__.startswith("AMD") for gpu in device.devices.devices)
            parts["GPU"], modelled = ("AMD SMI" if is_amd else "NVML"), False
        else:  # a chip with sensors of its own, of which CodeCarbon knows Apple's and Raspberry's
            parts[device.chip_part], modelled = f"{kind} sensor", False
        is_estimate |= modelled
    method = ", ".join(f"{part}: {parts[part]}" for part in ("CPU", "RAM", "GPU") if part in parts)
    return method, is_estimate


_warned = False


def _warn_once(message: str) -> None:
    global _warned  # noqa: PLW0603
    if not _warned:
        _warned = True
        warnings.warn(message, RuntimeWarning, stacklevel=3)
