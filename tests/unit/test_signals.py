"""Stop signals that wait until they are asked for."""

import os
import signal
import threading

import pytest

from hpo.utils.signals import STOP_SIGNALS, StopSignals, signals_blocked


@pytest.mark.parametrize("number", sorted(STOP_SIGNALS))
def test_a_signal_interrupts_nothing_and_is_told_once(number):
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        assert stop.wait(30)
        assert not stop.wait(0)


def test_two_signals_are_told_twice():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert [stop.wait(30), stop.wait(30), stop.wait(0)] == [True, True, False]


def test_a_signal_that_finds_another_thread_is_told_too():
    with StopSignals() as stop:
        there = threading.Event()
        leave = threading.Event()

        def sit() -> None:
            there.set()
            leave.wait(30)

        thread = threading.Thread(target=sit)
        thread.start()
        there.wait(30)
        signal.pthread_kill(thread.ident, signal.SIGTERM)
        assert stop.wait(30)
        leave.set()
        thread.join()


def test_what_is_ready_ends_the_wait_and_is_no_signal():
    receiver, sender = os.pipe()
    with StopSignals() as stop:
        os.write(sender, b"x")
        assert not stop.wait(30, [receiver])
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(30, [receiver])
    os.close(receiver)
    os.close(sender)


def test_another_thread_ends_the_wait():
    with StopSignals() as stop:
        thread = threading.Thread(target=stop.wake)
        thread.start()
        assert not stop.wait(30)
        thread.join()
        assert not stop.wait(0)
    stop.wake()  # too late, and no harm done


def test_the_handlers_are_as_before_afterwards():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with StopSignals():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_what_is_blocked_within_is_as_before_afterwards():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with signals_blocked():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= STOP_SIGNALS
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
