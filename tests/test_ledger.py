"""The ledger: every second on one line, compilation on its own."""

import time

import jax
import jax.numpy as jnp
import pytest

from jdss.ledger import LINES, Ledger, _CompileClock


def test_compilation_inside_an_activity_is_moved_to_its_own_line():
    ledger = Ledger()
    fresh = jax.jit(lambda x: jnp.linalg.eigh(x @ x.T + 3 * jnp.sin(x))[0].sum())
    start = time.perf_counter()
    with ledger.measure("training"):
        fresh(jnp.ones((7, 7))).block_until_ready()
    first = time.perf_counter() - start
    assert ledger.seconds["compiling"] > 0.5 * first
    compiling = ledger.seconds["compiling"]
    with ledger.measure("training"):
        fresh(jnp.ones((7, 7))).block_until_ready()
    assert ledger.seconds["compiling"] == compiling
    assert ledger.total_seconds <= time.perf_counter() - start


def test_nested_compilation_events_are_counted_once():
    clock, start = _CompileClock(), time.perf_counter()
    time.sleep(0.02)
    clock.record(0.005)  # traced inside the next one
    clock.record(time.perf_counter() - start)
    outer = time.perf_counter() - start
    assert clock.seconds == pytest.approx(outer, abs=2e-3)
    time.sleep(0.02)
    clock.record(0.01)
    assert clock.seconds == pytest.approx(outer + 0.01, abs=2e-3)


def test_a_compile_event_that_overlaps_an_earlier_one_adds_only_what_is_new():
    clock = _CompileClock()
    time.sleep(0.03)
    clock.record(0.02)
    clock.record(0.02)
    assert clock.seconds < 0.025


def test_what_a_measurement_inside_claims_is_not_counted_twice():
    ledger = Ledger()
    start = time.perf_counter()
    with ledger.measure("other"):
        time.sleep(0.02)
        with ledger.measure("solving"):
            time.sleep(0.03)
    elapsed = time.perf_counter() - start
    assert ledger.seconds["solving"] >= 0.03
    assert 0.02 <= ledger.seconds["other"] <= elapsed - 0.03
    assert 0.05 <= ledger.total_seconds <= elapsed


def test_an_activity_that_fails_is_still_accounted_for():
    ledger = Ledger()

    def fail():
        time.sleep(0.01)
        raise KeyError

    with pytest.raises(KeyError), ledger.measure("training"):
        fail()
    assert ledger.seconds["training"] >= 0.01
    with ledger.measure("training"):
        pass


def test_an_unknown_line_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="loading, compiling"), Ledger().measure("thinking"):
        pass


def test_ledgers_add_line_by_line():
    one, other = Ledger(), Ledger()
    for number, line in enumerate(LINES):
        one.seconds[line], other.seconds[line] = number, 10.0
    one.add(other)
    one.add(Ledger().as_dict())
    assert one.seconds == {line: number + 10.0 for number, line in enumerate(LINES)}
