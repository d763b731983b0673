"""What a search remembers from epoch to epoch: its choices, the noise of its gradients, the last sound genotype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoreid.spaces.genotype import Genotype


class SearchProgress:
    """The memory of a search.

    Attributes:
        columns: the best candidates after the last epoch, by group; None before the first.
        collapsed: whether the genotype after the last epoch was degenerate.
        found: the genotype to report, which the read-out or a collapse has fixed; None for that of the alphas.
        sound: the last genotype that was not degenerate; None before there was one.
        sound_epoch: the epoch of that genotype, from 1.
        signs: the signs of the last epoch, by name.
        undecided: how many choices of each group were open after the last epoch.
    """

    _PLAIN = ("columns", "collapsed", "sound_epoch", "signs", "undecided")
    _GENOTYPES = ("found", "sound")

    def __init__(self, shapes: Mapping[str, tuple[int, int]], device: torch.device) -> None:
        self.columns: dict[str, list[int]] | None = None
        self.collapsed = False
        self.found: Genotype | None = None
        self.sound: Genotype | None = None
        self.sound_epoch = 0
        self.signs: dict[str, float] = {}
        self.undecided: dict[str, int] = {}
        self._steps = self._all_steps = 0
        # In float64: a variance that is small beside the squared mean would be lost in float32.
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        names = sorted(shapes)
        # Sums over the steps of an epoch: of the gradients and of their squares.
        self._sums = {name: zeros(2, *shapes[name]) for name in names}
        # Sums over all steps: of the gradients (E, O), and of the products of two candidates of a row (E, O, O).
        self._totals = {name: zeros(shapes[name]) for name in names}
        self._products = {name: zeros(*shapes[name], shapes[name][1]) for name in names}

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add the gradients of a step, averaged over the ranks: one for each group, in alphabetical order."""
        self._steps, self._all_steps = self._steps + 1, self._all_steps + 1
        for name, gradient in zip(self._sums, gradients, strict=True):
            self._sums[name] += torch.stack([gradient, gradient.square()])
            self._totals[name] += gradient
            self._products[name] += gradient[:, :, None] * gradient[:, None]

    def gradient_signs(self) -> dict[str, float]:
        """Return `<group>/gradient_snr` of the epoch, and start the next one.

        It is the signal-to-noise ratio of one step's gradient: the length of its mean over the steps, divided by the
        square root of its total variance. The square of the mean is corrected for the noise that is left in it. At
        least two steps are needed.
        """
        steps, self._steps = self._steps, 0
        signs = {}
        for name, sums in self._sums.items():
            if steps > 1:
                mean, square = sums.double() / steps
                variance = ((square - mean.square()) * steps / (steps - 1)).sum().clamp(min=1e-30)
                signal = (mean.square().sum() - variance / steps).clamp(min=0)
                signs[f"{name}/gradient_snr"] = (signal / variance).sqrt().item()
            sums.zero_()
        return signs

    def leads(self) -> dict[str, Tensor]:
        """Return how much the gradients of all steps favoured each candidate over each other one, (E, O, O).

        It is the mean over the steps of the difference between the other's gradient and its own, in standard errors of
        that mean; NaN before the third step. Steps count as independent.
        """
        n = self._all_steps
        found = {}
        for name, total in self._totals.items():
            mean = total.double().cpu() / max(n, 1)
            difference = mean[:, None] - mean[:, :, None]
            square = self._products[name].double().cpu() / max(n, 1)
            of_one = square.diagonal(dim1=1, dim2=2)
            squared_difference = of_one[:, None] + of_one[:, :, None] - 2 * square
            variance = (squared_difference - difference.square()).clamp(min=1e-30) * n / max(n - 1, 1)
            found[name] = difference / (variance / max(n, 1)).sqrt() if n > 2 else difference * torch.nan
        return found

    def changes(self, columns: dict[str, list[int]]) -> dict[str, float]:
        """Store the choices, and return `<group>/changed`, how many differ from those of the last epoch."""
        before, self.columns = self.columns, columns
        if before is None:
            return {}
        pairs = {name: zip(before[name], columns[name], strict=True) for name in columns}
        return {f"{name}/changed": float(sum(a != b for a, b in both)) for name, both in pairs.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values; genotypes as their text."""
        plain = {name: getattr(self, name) for name in self._PLAIN}
        genotypes = {name: getattr(self, name) for name in self._GENOTYPES}
        texts = {name: None if value is None else str(value) for name, value in genotypes.items()}
        sums = [self._sums, self._totals, self._products]
        on_cpu = [{name: value.cpu() for name, value in part.items()} for part in sums]
        return {**plain, **texts, "steps": [self._steps, self._all_steps], "sums": on_cpu}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        for name in self._PLAIN:
            setattr(self, name, state[name])
        for name in self._GENOTYPES:
            text = state[name]
            setattr(self, name, None if text is None else Genotype.parse(text, f"checkpoint: {name}"))
        self._steps, self._all_steps = state["steps"]
        for part, saved in zip((self._sums, self._totals, self._products), state["sums"], strict=True):
            for name, value in part.items():
                value.copy_(saved[name])
