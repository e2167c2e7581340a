"""Stop signals that wait until they are asked for."""

import os
import signal
import threading

import pytest

from hpo.utils.signals import STOP_SIGNALS, StopSignals, handle_stop_signals, received_signal, signals_blocked

# Far above the timeout of a test: a wait that ends has another reason.
LONG_S = 3600


@pytest.mark.parametrize("number", sorted(STOP_SIGNALS))
def test_signal_is_returned_once(number):
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        assert stop.wait(LONG_S)
        assert not stop.wait(0)


def test_two_signals_are_returned_twice():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert [stop.wait(LONG_S), stop.wait(LONG_S), stop.wait(0)] == [True, True, False]


def test_signal_to_another_thread_is_returned():
    with StopSignals() as stop:
        is_running, may_end = threading.Event(), threading.Event()

        def run() -> None:
            is_running.set()
            may_end.wait()

        thread = threading.Thread(target=run)
        thread.start()
        is_running.wait()
        signal.pthread_kill(thread.ident, signal.SIGTERM)
        assert stop.wait(LONG_S)
        may_end.set()
        thread.join()


def test_descriptor_is_readable_after_signal_or_wake():
    with StopSignals() as stop:
        os.set_blocking(stop.fileno(), False)
        with pytest.raises(BlockingIOError):
            os.read(stop.fileno(), 1)
        stop.wake()
        assert not stop.wait(LONG_S)
        os.kill(os.getpid(), signal.SIGINT)
        assert os.read(stop.fileno(), 1) == bytes([signal.SIGINT])


def test_wake_from_another_thread_ends_wait():
    with StopSignals() as stop:
        thread = threading.Thread(target=stop.wake)
        thread.start()
        assert not stop.wait(LONG_S)
        thread.join()
        assert not stop.wait(0)
    # After the end it does nothing.
    stop.wake()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_repeated_hangup_is_not_second_signal(first):
    # The shell and the kernel both send it when a terminal is closed.
    with StopSignals() as stop:
        os.kill(os.getpid(), first)
        assert stop.wait(LONG_S)
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.wait(LONG_S)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(LONG_S)


@pytest.fixture
def settings():
    """Restore all signal handlers and the mask."""
    numbers = [*STOP_SIGNALS, signal.SIGCHLD]
    handlers = {number: signal.getsignal(number) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.mark.parametrize("ignored", [*[{number} for number in sorted(STOP_SIGNALS)], STOP_SIGNALS])
def test_ignored_signal_stays_ignored(ignored, settings):
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    handle_stop_signals(signal.default_int_handler)
    with StopSignals() as stop:
        for number in ignored:
            os.kill(os.getpid(), number)
        assert not stop.wait(0)
        for number in STOP_SIGNALS - ignored:
            os.kill(os.getpid(), number)
            assert stop.wait(LONG_S) or number == signal.SIGHUP
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    assert {number for number, handler in handlers.items() if handler is signal.SIG_IGN} == ignored


def test_blocked_signals_are_unblocked(settings):
    signal.pthread_sigmask(signal.SIG_BLOCK, [*STOP_SIGNALS, signal.SIGCHLD, signal.SIGUSR1])
    handle_stop_signals(lambda *_: None)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*STOP_SIGNALS, signal.SIGCHLD}


def test_exits_of_children_are_not_ignored(settings):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    handle_stop_signals(lambda *_: None)
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


@pytest.mark.parametrize("has_sigtimedwait", [True, False])
def test_blocked_signal_is_received(has_sigtimedwait, monkeypatch):
    if not has_sigtimedwait:
        # As on macOS.
        monkeypatch.delattr(signal, "sigtimedwait")
    with signals_blocked():
        assert not received_signal(signal.SIGTERM, 0)
        # The signal is not blocked in other threads of the test.
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        assert received_signal(signal.SIGTERM, LONG_S)
        assert not received_signal(signal.SIGTERM, 0)


def test_handlers_are_restored_afterwards():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with StopSignals():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_signal_mask_is_restored_afterwards():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with signals_blocked():
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= STOP_SIGNALS
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
