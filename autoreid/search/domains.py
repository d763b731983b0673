"""How well a move of the alphas serves the domain that was left out, compared with one that the weights have seen."""

from __future__ import annotations

import torch
from torch import Tensor

from autoreid.data.loaders import Batch, BatchStream
from autoreid.distributed import average_and_agree
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect

#: Global batches of each domain that a gain is measured on.
BATCHES = 4


def domain_gains(
    architect: Architect,
    before: Alphas,
    stream: BatchStream,
    domains: int,
    layout: torch.memory_format,
) -> dict[str, float]:
    """Measures how much the alphas' loss is lower than with the alphas from the start of the epoch.

    Both losses use the present weights, the same images, running statistics, and mixing weights without noise. The
    weights have adapted to the alphas' move, which lowers the loss on every domain. What the move does for a domain
    that the weights have not seen in this epoch is therefore the difference between the two gains.

    All ranks call it, after the last step of an epoch.

    Args:
        stream: batches of the alphas, at the start of the next epoch.
        domains: number of domains, which are left out in turn.
        layout: memory layout of the images.

    Returns:
        `left_out_gain`: of the domain that the epoch left out; `seen_gain`: of the domain that the next one leaves
        out. Each is measured on the first batches of the next epoch that uses the domain.
    """
    epoch = stream.sampler.epoch
    gains = []
    for when in (epoch - 1 + domains, epoch):
        batches = (batch.to(batch.images.device, layout) for batch in stream.first_batches(when, BATCHES))
        gains.append(torch.stack([_gain(architect, before, batch) for batch in batches]).mean())
    (means,), _ = average_and_agree([torch.stack(gains)])
    return dict(zip(("left_out_gain", "seen_gain"), means.tolist(), strict=True))


@torch.no_grad()
def _gain(architect: Architect, before: Alphas, batch: Batch) -> Tensor:
    return _loss(architect, before, batch) - _loss(architect, architect.alphas, batch)


def _loss(architect: Architect, alphas: Alphas, batch: Batch) -> Tensor:
    """The alphas' loss on this rank's share of a batch, a scalar."""
    inputs = architect.relaxation.evaluation(alphas)
    losses = []
    with architect.alpha_statistics(), torch.compiler.set_stance("force_eager"):
        for micro_batch in architect.accumulation.micro_batches(batch):
            with architect.precision.autocast():
                outputs = architect.supernet(micro_batch.images, *inputs)
            losses.append(architect.alpha_loss(outputs, micro_batch.labels).total)
    return torch.stack(losses).mean()
