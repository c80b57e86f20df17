"""Stop a run on Ctrl-C or a scheduler's signal after the current step, with that step in a checkpoint.

While a phase trains, the handler only records the signal. After each step
:class:`~finetune.training.callbacks.checkpoints.PhaseCheckpoints` reads that record, agrees with the other processes whether to
stop, writes ``last.ckpt`` and raises :class:`~finetune.errors.Interrupted`. Everywhere else (filling a cache, solving a head,
testing, writing the bundle) there is no step to save, and the handler raises at once. A second Ctrl-C kills the process, which
loses nothing that was saved: every file of a run is whole at every moment.

A command holds an :class:`Interruption` around the one of its run: imports, weights and the listing of large data before the
first phase, and the report after the last, may take minutes too.
"""

import os
import signal
import threading
import time
from collections.abc import Collection
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from finetune.errors import Interrupted, RunError, UserError

if TYPE_CHECKING:  # a command handles signals before it imports these
    import lightning.pytorch as pl

# Ctrl-C; sent by schedulers, service managers and kill; sent by SLURM before the time limit; by submitit; a lost terminal
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# torchrun and timeout forward a signal that the whole process group has already received; a user's second Ctrl-C comes later
_SAME_SIGNAL_S = 0.5


class Interruption:
    """Handles the signals that stop a run, inside its ``with`` block.

    A signal that already has a handler, or is ignored (``nohup``), is left as it is, except where that is an
    :class:`Interruption` around this one.

    Args:
        hint: Advice on how to continue, which ends the message.
        where: Point that the run has reached, for the message: "in phase 1 (head)".
        replaced: Signals whose handlers are replaced whatever they are.
    """

    def __init__(self, hint: str, *, where: str = "", replaced: Collection[int] = ()) -> None:
        # number of the signal that asked the run to stop; 0 while none has
        self.number = 0
        self.where = where
        self._hint, self._replaced = hint, replaced
        self._training = self._raised = False
        self._since = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}
        self._outer: Interruption | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                outer = getattr(handler, "__self__", None)
                if isinstance(outer, Interruption):
                    # a signal that came before, and whose exception something swallowed, stops the run at its next check
                    self._outer, self.number, self._since = outer, outer.number, outer._since
                    self._previous[number] = signal.signal(number, self._receive)
                elif number in self._replaced or handler in (signal.SIG_DFL, signal.default_int_handler):
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, Interrupted):
            return
        # Lightning turns a KeyboardInterrupt into SystemExit(1); torch's writers turn one into an error of their own
        hidden = self._raised and isinstance(error, Exception) and not isinstance(error, (UserError, RunError))
        if isinstance(error, (KeyboardInterrupt, SystemExit)) or hidden:
            raise self.interruption_error() from None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked process, which its parent ends
        if self.number:
            if number == signal.SIGINT and time.monotonic() - self._since > _SAME_SIGNAL_S:
                signal.signal(number, signal.SIG_DFL)
                os.kill(self._process, number)
            return
        self.number, self._since = number, time.monotonic()
        if not self._training:
            raise self.interruption_error()

    def interruption_error(self, number: int | None = None) -> Interrupted:
        """Return the exception that ends the run.

        Args:
            number: Number of the signal if another process of the run received it; None for this process's signal.
        """
        self._raised = True
        self._note(number or self.number or signal.SIGINT)
        return Interrupted(f"stopped{self.where and ' ' + self.where}; {self._hint}", self.number)

    def _note(self, number: int) -> None:
        """Record the signal here and outside, where a second one, as agents forward it, then does not disturb what follows."""
        self.number, self._since = number, self._since or time.monotonic()
        if self._outer is not None:
            self._outer._note(number)

    def begin_training(self) -> None:
        """Let signals wait for the end of a step from here on.

        Raises:
            Interrupted: A signal has already arrived.
        """
        self.check()
        self._training = True

    def end_training(self) -> None:
        """Let signals raise at once again. A signal that arrived after the last step raises at the next :meth:`check`."""
        self._training = False

    def check(self) -> None:
        """Stop here if a signal has arrived.

        Raises:
            Interrupted: A signal has arrived.
        """
        if self.number:
            raise self.interruption_error()

    def agreed(self, trainer: "pl.Trainer") -> int:
        """Return the number of the signal that any process of the run has received, the same on all of them; 0 for none.

        Every process must call this at the same point.
        """
        if trainer.world_size > 1:
            import torch

            number = torch.tensor(self.number, device=trainer.strategy.root_device)
            self.number = int(trainer.strategy.reduce(number, reduce_op="max"))
        return self.number


def disable_lightning_signal_handlers(trainer: "pl.Trainer") -> None:
    """Keep Lightning from installing its own signal handlers; :class:`Interruption` stops the run instead.

    Lightning's handler of SIGTERM broadcasts from inside the handler, whatever the processes are doing at that moment, and the
    one for SLURM writes its own checkpoint and requeues the job.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
