"""The training loop, for any number of processes; interrupted runs resume to the same result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..lookahead import LookaheadModules, save_modules
from .checkpoint import State, latest, load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .curve import write_curve
from .schedule import learning_rate, shares
from .step import ground_truth, lookahead_loss


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
        """Put the mean gradient of a step's batch into ``.grad``; returns its mean loss."""
        config, accelerator = self.config, self.accelerator
        total = torch.zeros((), device=self.model.device)
        self.optimizer.zero_grad(set_to_none=False)
        first = step * config.batch_size
        batch = [self.samples[first + index] for index in range(config.batch_size)]
        for sample in self._share(batch):
            loss = self.loss(sample) / config.batch_size
            loss.backward()
            total += loss.detach()
        self._sum_over_processes()
        return float(accelerator.reduce(total, "sum"))

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
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over the held-out samples."""
        assert self.held_out is not None
        total = torch.zeros((), device=self.model.device)
        for sample in self._share([self.held_out[i] for i in range(self.config.eval_samples)]):
            total += self.loss(sample) / self.config.eval_samples
        return float(self.accelerator.reduce(total, "sum"))

    def run(self) -> Result:
        """Train to the end, from the newest checkpoint in the output folder if there is one.

        Raises:
            ValueError: that checkpoint was made with other hyper-parameters.
        """
        config = self.config
        losses: list[float] = []
        evaluations: list[tuple[int, float]] = []
        if (path := latest(self.output)) is not None:
            state = load_checkpoint(path, self.modules, self.optimizer)
            if state.config != self._record:
                raise ValueError(
                    f"{path} was made with other hyper-parameters: {state.config}; choose another "
                    "output folder, or the same hyper-parameters to resume"
                )
            losses, evaluations = state.losses, state.evaluations
        main = self.accelerator.is_main_process
        bar = tqdm(total=config.steps, initial=len(losses), desc="training", disable=not main)
        for step in range(len(losses), config.steps):
            losses.append(self.step(step))
            done = step + 1
            bar.update()
            bar.set_postfix(kl=f"{losses[-1]:.4f}")
            if self.held_out and config.eval_every and done % config.eval_every == 0:
                evaluations.append((done, self.evaluate()))
            if main and (done % config.checkpoint_every == 0 or done == config.steps):
                state = State(done, losses, evaluations, self._record)
                save_checkpoint(self.output, self.modules, self.optimizer, state)
                write_curve(self.output, losses, evaluations)
        bar.close()
        if main:
            save_modules(self.modules, self.output, training=self._record)
        self.accelerator.wait_for_everyone()
        return Result(losses, evaluations)


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
