"""Log files of workers: one file per worker, and each line to the user if the launch is verbose."""

import datetime
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpo.runner.trial_runner import NO_TRIAL, SharedProgress
from hpo.utils.streams import ForgivingFile

# The time to read the last output of a worker that has ended. Processes that it left behind can keep its pipe open.
_READ_TIMEOUT_S = 1.0
_READ_BYTES = 1 << 16
# A longer line is shown in parts.
_MAX_LINE_BYTES = 1 << 13

Show = Callable[[str], object]


@dataclass
class WorkerLogs:
    """Log files of the workers of a launch: ``worker-1.log``, ``worker-2.log``, ...

    A failure to write a log ends neither the launch nor a worker.

    Attributes:
        folder: The folder of the files. It is created when the first worker starts.
        note: The receiver of a message about a log that cannot be written.
        show: The receiver of each line of output, for example "trial 12: epoch 3"; None if only the files get them.
            It is called from other threads. A line can contain control characters.
    """

    folder: Path
    note: Show
    show: Show | None = None
    _has_failed: bool = field(default=False, init=False)

    def open(self, slot: int, progress: SharedProgress) -> "WorkerOutput":
        """Return the output of a new worker.

        Args:
            slot: The worker's slot, counted from 0.
            progress: The worker's position, which holds the number of its trial.
        """
        file = self._open_file(slot)
        return WorkerOutput(file) if self.show is None else ShownOutput(file, slot, progress, self.show)

    def _open_file(self, slot: int) -> int:
        path = self.folder / f"worker-{slot + 1}.log"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                self.note(f"{path}: cannot be written: {error.strerror}; the workers run without a log")
            return os.open(os.devnull, os.O_WRONLY)
        if os.fstat(descriptor).st_size:
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            ForgivingFile(descriptor).write(f"--- {now} worker {slot + 1} starts again ---\n".encode())
        return descriptor


class WorkerOutput:
    """Output of one worker to its log file.

    Attributes:
        descriptor: The stdout and stderr of the worker.
        inherited: Other descriptors that the worker must keep open.
    """

    inherited: tuple[int, ...] = ()

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        """Close the descriptor in the launch, after the worker has inherited it."""
        os.close(self.descriptor)

    def finish(self) -> None:
        """Wait until the output of a worker that has ended is written."""


class ShownOutput(WorkerOutput):
    """Output of one worker to its log file and, line by line, to the user.

    Args:
        file: The descriptor of the log file.
        slot: The worker's slot, counted from 0.
        progress: The worker's position.
        show: The receiver of each line.
    """

    def __init__(self, file: int, slot: int, progress: SharedProgress, show: Show) -> None:
        self._receiver, sender = os.pipe()
        super().__init__(sender)
        # If the launch is killed, output must not fail in the worker because nobody could read it.
        self.inherited = (self._receiver,)
        self._file, self._progress, self._show = file, progress, show
        # Where the next line comes from.
        self._source = f"worker {slot + 1}"
        self._thread = threading.Thread(target=self._read, name=f"output of worker {slot + 1}", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the output of a worker that has ended is written and shown."""
        self._thread.join(_READ_TIMEOUT_S)

    def _read(self) -> None:
        log, line = ForgivingFile(self._file), b""
        while content := os.read(self._receiver, _READ_BYTES):
            log.write(content)
            *lines, line = (line + content).split(b"\n")
            for finished in lines:
                self._show_line(finished)
            # A progress bar starts its line again.
            line = line[max(0, line[:-1].rfind(b"\r")) :]
            if len(line) > _MAX_LINE_BYTES:
                self._show_line(line)
                line = b""
        self._show_line(line)
        os.close(self._receiver)
        os.close(self._file)

    def _show_line(self, line: bytes) -> None:
        text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="backslashreplace")
        if (number := self._progress.number) != NO_TRIAL:
            # The last lines of a trial are read when it may have ended.
            self._source = f"trial {number}"
        if text.strip():
            self._show(f"{self._source}: {text}")
