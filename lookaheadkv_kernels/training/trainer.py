"""The training loop, for any number of processes; interrupted runs resume to the same result."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from .._interrupts import HeldBack, Interrupted, held_back, number_of
from .._log import logger
from ..lookahead import LookaheadModules, save_modules
from .checkpoint import State, check_resumable, load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .curve import write_curve
from .schedule import learning_rate, shares
from .step import ground_truth, lookahead_loss

TELL_EVERY = 1.0  # seconds between words of progress within a step


class Sample(Protocol):
    """One prompt and, if the data has it, its response."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...

    @property
    def response_ids(self) -> Sequence[int] | None: ...


class Samples(Protocol):
    """An endless sequence of samples: sample i is the same at every call, in every process."""

    def __getitem__(self, index: int, /) -> Sample: ...


class Result(NamedTuple):
    """A finished run."""

    losses: list[float]  # mean KL of every step
    evaluations: list[tuple[int, float]]  # (steps done, held-out KL)


def without_middle(ids: Sequence[int], longest: int) -> list[int]:
    """At most ``longest`` ids: the first and the last ones, without the middle."""
    if len(ids) <= longest:
        return list(ids)
    head = longest // 2
    return [*ids[:head], *ids[len(ids) - (longest - head) :]]


@dataclass
class _Progress:
    """What a run has done, and what of it is on the disk."""

    losses: list[float]
    evaluations: list[tuple[int, float]]
    saved: int = 0  # steps of the newest checkpoint
    saved_at: float = field(default_factory=time.monotonic)
    is_whole: bool = True  # False while a step changes the weights

    @property
    def done(self) -> int:
        """Optimizer steps."""
        return len(self.losses)

    def is_to_be_saved(self, config: TrainingConfig) -> bool:
        """Whether it is time for a checkpoint."""
        if self.done == self.saved:
            return False
        minutes = (time.monotonic() - self.saved_at) / 60
        return (
            self.done % config.checkpoint_every == 0
            or self.done == config.steps
            or 0 < config.checkpoint_minutes <= minutes
        )


class Trainer:
    """Trains lookahead modules on a frozen model.

    Args:
        model: a transformers causal language model with our attention attached.
        modules: what is trained, on the model's device, in float32.
        samples: training data.
        output: folder of the run: checkpoints, ``loss.csv``, ``loss.png``, and at the end the
            modules themselves.
        config: hyper-parameters.
        held_out: data for evaluations.
        facts: further entries of the run's record (names of model and data).
    """

    def __init__(
        self,
        model: Any,
        modules: LookaheadModules,
        samples: Samples,
        output: str | Path,
        config: TrainingConfig,
        held_out: Samples | None = None,
        *,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.accelerator = Accelerator(cpu=model.device.type == "cpu")
        self.model = model.eval().requires_grad_(False)
        self.modules = modules.train().requires_grad_(True)
        self.samples = samples
        self.held_out = held_out
        self.output = Path(output)
        self.config = config
        self._record = {**(facts or {}), **config.to_dict()}
        self._held = HeldBack()
        self._bar = tqdm(disable=True)
        self._last = ""  # the last step's loss, for the bar
        self._told = 0.0  # when the bar was last drawn within a step
        self.optimizer = torch.optim.Adam(
            modules.parameters(), lr=config.learning_rate, betas=config.betas
        )

    def loss(self, sample: Sample) -> Tensor:
        """The differentiable loss of one sample."""
        prompt = without_middle(sample.prompt_ids, self.config.max_prompt)
        target = ground_truth(self.model, prompt, sample.response_ids, self.config.max_response)
        return lookahead_loss(
            self.model, self.modules, target, checkpointing=self.config.checkpointing
        )

    def accumulate(self, step: int) -> float:
        """Put the mean gradient of a step's batch into ``.grad``; returns its mean loss.

        Raises:
            Interrupted: a process was asked to end; all of them leave here.
        """
        config = self.config
        total = torch.zeros((), device=self.model.device)
        self.optimizer.zero_grad(set_to_none=False)
        first = step * config.batch_size
        batch = [self.samples[first + index] for index in range(config.batch_size)]
        for sample in self._in_turn(self._share(batch), "sample"):
            loss = self.loss(sample) / config.batch_size
            loss.backward()
            total += loss.detach()
        mean = self._sum_of_losses(total)
        self._sum_over_processes()
        return mean

    def _in_turn(self, samples: Sequence[Sample], what: str) -> Iterator[Sample]:
        """The samples, with a word of progress each, until this process is asked to end."""
        for number, sample in enumerate(samples, start=1):
            if self._held.waiting:
                return
            text = f"{self._last}{what} {number} of {len(samples)}"
            now = time.monotonic()
            is_due = now - self._told >= TELL_EVERY
            self._told = now if is_due else self._told
            self._bar.set_postfix_str(text, refresh=is_due)
            yield sample

    def _sum_of_losses(self, total: Tensor) -> float:
        """The sum over all processes.

        Raises:
            Interrupted: one of them was asked to end, so that its losses are not complete.
        """
        asked = torch.full_like(total, len(self._held.waiting))
        both = self.accelerator.reduce(torch.stack([total, asked]), "sum")
        value, interrupted = both.tolist()
        if interrupted:
            raise Interrupted(number=next(iter(self._held.waiting), signal.SIGTERM))
        return float(value)

    def _share(self, batch: Sequence[Sample]) -> list[Sample]:
        """This process's samples of a batch."""
        # Writing one token takes about as long as reading 25 tokens of a prompt.
        writing = 25 * self.config.max_response
        costs = [
            len(sample.prompt_ids) + (writing if sample.response_ids is None else 0)
            for sample in batch
        ]
        dealt = shares(costs, self.accelerator.num_processes)
        return [batch[index] for index in dealt[self.accelerator.process_index]]

    def _sum_over_processes(self) -> None:
        """Add up the gradients of all processes, in one message."""
        parameters = list(self.modules.parameters())
        for parameter in parameters:
            if parameter.grad is None:  # a process without a sample at this step
                parameter.grad = torch.zeros_like(parameter)
        if self.accelerator.num_processes == 1:
            return
        flat = torch.cat([_grad(parameter).flatten() for parameter in parameters])
        flat = self.accelerator.reduce(flat, "sum")
        for parameter, part in zip(
            parameters, flat.split([parameter.numel() for parameter in parameters]), strict=True
        ):
            _grad(parameter).copy_(part.view_as(parameter))

    def step(self, step: int) -> float:
        """One optimizer step; returns the loss before it."""
        loss = self.accumulate(step)
        self._update(step)
        return loss

    def _update(self, step: int) -> None:
        """Change the weights by the gradient that has been accumulated."""
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over the held-out samples.

        Raises:
            Interrupted: a process was asked to end; all of them leave here.
        """
        assert self.held_out is not None
        total = torch.zeros((), device=self.model.device)
        held_out = [self.held_out[i] for i in range(self.config.eval_samples)]
        for sample in self._in_turn(self._share(held_out), "held-out sample"):
            total += self.loss(sample) / self.config.eval_samples
        return self._sum_of_losses(total)

    def run(self) -> Result:
        """Train to the end, from the newest checkpoint in the output folder if there is one.

        Whatever ends the run early, a signal or an error, the steps that were done are in a
        checkpoint afterwards.

        Raises:
            ValueError: that checkpoint was made with other arguments.
            Interrupted: by a signal.
        """
        progress = self._resumed()
        main = self.accelerator.is_main_process
        # Several processes can only stop together, so each looks for signals between samples.
        together = self.accelerator.num_processes > 1
        with (
            held_back() if together else contextlib.nullcontext(HeldBack()) as self._held,
            tqdm(
                total=self.config.steps,
                initial=progress.done,
                desc="training",
                disable=not main,
            ) as self._bar,
        ):
            try:
                self._train(progress)
                if main:
                    save_modules(self.modules, self.output, training=self._record)
            except KeyboardInterrupt as interrupt:
                with held_back():
                    saved = self._save(progress)
                    self.accelerator.wait_for_everyone()
                raise Interrupted(saved, number_of(interrupt)) from interrupt
            except Exception as error:
                logger.error(f"training ends early: {self._save(progress)} ({error})")
                raise
        self.accelerator.wait_for_everyone()
        return Result(progress.losses, progress.evaluations)

    def _resumed(self) -> _Progress:
        """Where the newest checkpoint leaves off."""
        path = check_resumable(self.output, self._record, self.modules.config)
        if path is None:
            return _Progress([], [])
        state = load_checkpoint(path, self.modules, self.optimizer)
        return _Progress(state.losses, state.evaluations, saved=state.step)

    def _train(self, progress: _Progress) -> None:
        config = self.config
        while True:
            done, evaluated = progress.done, progress.evaluations[-1:]
            due = self.held_out is not None and config.eval_every and done % config.eval_every == 0
            if due and done and (not evaluated or evaluated[0][0] != done):
                progress.evaluations.append((done, self.evaluate()))
            if progress.is_to_be_saved(config):
                with held_back():
                    self._save(progress)
            if done == config.steps:
                return
            loss = self.accumulate(done)
            with held_back():
                progress.is_whole = False
                self._update(done)
                progress.losses.append(loss)
                progress.is_whole = True
            self._last = f"kl {loss:.4f}, "
            self._bar.set_postfix_str(self._last[:-2], refresh=False)
            self._bar.update()

    def _save(self, progress: _Progress) -> str:
        """Write a checkpoint if there is something new to write; says what is on the disk."""
        if (
            self.accelerator.is_main_process
            and progress.is_whole
            and progress.done > progress.saved
        ):
            state = State(progress.done, progress.losses, progress.evaluations, self._record)
            save_checkpoint(self.output, self.modules, self.optimizer, state)
            progress.saved, progress.saved_at = progress.done, time.monotonic()
            write_curve(self.output, progress.losses, progress.evaluations)
        if not progress.saved:
            return "no step was done yet"
        return f"step {progress.saved} of {self.config.steps} is in {self.output}"


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
