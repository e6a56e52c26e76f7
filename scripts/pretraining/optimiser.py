"""Muon for the matrices of the blocks and AdamW for everything else, on float32 masters of bfloat16 weights.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal one. Matrices of one shape
are treated together, because many small products are slow on a CPU.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import nn


def orthogonal(batch: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearest orthogonal matrices (count, rows, columns), by the quintic Newton-Schulz iteration."""
    tall = batch.shape[1] > batch.shape[2]
    x = batch.bfloat16().transpose(1, 2) if tall else batch.bfloat16()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.float()
    return x.transpose(1, 2) if tall else x


class Trainer:
    """Float32 masters, moments and running mean of a bfloat16 model's parameters."""

    def __init__(
        self, model: nn.Module, *, muon: bool, weight_decay: float, fast: nn.Module, ema: float = 0.998
    ) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.master = [p.detach().float().clone() for _, p in model.named_parameters()]
        self.fast = [p for _, p in fast.named_parameters()]
        self.mean = [p.clone() for p in self.master]
        self.first = [torch.zeros_like(p) for p in self.master]
        self.second = [torch.zeros_like(p) for p in self.master]
        self.weight_decay, self.ema, self.steps = weight_decay, ema, 0
        self.gradients: list[torch.Tensor] = []
        matrix = [p.ndim == 2 and ".layers." in name for name, p in zip(self.names, self.master, strict=True)]
        self.groups: dict[tuple[int, ...], list[int]] = {}
        for position, is_matrix in enumerate(matrix):
            if muon and is_matrix:
                self.groups.setdefault(tuple(self.master[position].shape), []).append(position)
        grouped = {i for group in self.groups.values() for i in group}
        self.plain = [i for i in range(len(self.master)) if i not in grouped]
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the bfloat16 model."""
        torch._foreach_copy_(self.fast, self.master)

    @torch.no_grad()
    def exchange(self, numbers: list[float]) -> list[float]:
        """Average the gradients, and some numbers with them, over the workers; returns the averaged numbers."""
        parts = [torch.zeros_like(m) if p.grad is None else p.grad for p, m in zip(self.fast, self.master, strict=True)]
        flat = torch.cat([*(part.flatten().float() for part in parts), torch.tensor(numbers)])
        for p in self.fast:
            p.grad = None
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        pieces = flat[: -len(numbers)].split([m.numel() for m in self.master])
        self.gradients = [piece.view_as(m) for piece, m in zip(pieces, self.master, strict=True)]
        return [float(number) for number in flat[-len(numbers) :]]

    @torch.no_grad()
    def step(self, *, rate: float, matrix_rate: float, clip: float = 1.0) -> float:
        """One update from the exchanged gradients; returns their norm before clipping."""
        self.steps += 1
        gradients = self.gradients
        norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
        torch._foreach_mul_(gradients, min(1.0, clip / (norm + 1e-6)))
        self._adam(gradients, rate)
        for group in self.groups.values():
            self._muon(group, gradients, matrix_rate)
        # The running mean is short at first, so that early checkpoints are worth something.
        decay = min(self.ema, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.mean, self.master, 1 - decay)
        self.publish()
        return norm

    def _adam(self, gradients: list[torch.Tensor], rate: float, betas: tuple[float, float] = (0.9, 0.98)) -> None:
        for i in self.plain:
            p, g, m, v = self.master[i], gradients[i], self.first[i], self.second[i]
            m.lerp_(g, 1 - betas[0])
            v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
            if p.ndim >= 2 and "embedding" not in self.names[i]:
                p.mul_(1 - rate * self.weight_decay)
            scale = (v / (1 - betas[1] ** self.steps)).sqrt_().add_(1e-8)
            p.addcdiv_(m, scale, value=-rate / (1 - betas[0] ** self.steps))

    def _muon(self, group: list[int], gradients: list[torch.Tensor], rate: float, momentum: float = 0.95) -> None:
        looked = []
        for i in group:
            self.first[i].lerp_(gradients[i], 1 - momentum)
            looked.append(gradients[i].lerp(self.first[i], momentum))
        update = orthogonal(torch.stack(looked))
        rows, columns = update.shape[1:]
        # Root-mean-square of an AdamW update, so that one rate and decay serve both (Liu et al. 2025).
        update *= 0.2 * max(rows, columns) ** 0.5
        for position, i in enumerate(group):
            self.master[i].mul_(1 - rate * self.weight_decay).add_(update[position], alpha=-rate)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, by name."""
        parts = {"master": self.master, "mean": self.mean, "first": self.first, "second": self.second}
        return {
            f"{part}/{name}": tensor
            for part, tensors in parts.items()
            for name, tensor in zip(self.names, tensors, strict=True)
        }

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor], steps: int) -> None:
        """Continue from :meth:`state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.steps = steps
        self.publish()
