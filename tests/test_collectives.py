"""Collectives and shared batch statistics: several processes compared with one."""

import copy

import pytest
import torch
from torch import nn

from autoreid import distributed
from autoreid.errors import DataError, DisagreementError, PeerError
from autoreid.layers.batch_norm import frozen_statistics, share_batch_statistics
from tests.helpers.ranks import run_ranks


def _batch(rows: int = 8) -> torch.Tensor:
    return torch.randn(rows, 6, 5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 + 1


def _network() -> nn.Sequential:
    torch.manual_seed(5)
    layers = (
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 3),
        nn.BatchNorm1d(3),
    )
    return nn.Sequential(*layers, nn.Linear(3, 1)).double()


def _share(world, batch):
    rows = len(batch) // world.size
    return batch[world.rank * rows : (world.rank + 1) * rows]


def _train_statistics(world):
    """Loss gradients, the gradient of their norm (a second derivative), and running statistics."""
    network = share_batch_statistics(_network())
    x = _share(world, _batch()).requires_grad_()
    loss = network(x).square().mean()
    weights = list(network.parameters())
    first = torch.autograd.grad(loss, weights, create_graph=True)
    flat = distributed.sum_over_ranks(torch.cat([g.reshape(-1) for g in first])) / world.size
    second = torch.autograd.grad(flat.square().sum(), weights, allow_unused=True, materialize_grads=True)
    averaged, _ = distributed.average_and_agree(second)
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    network.eval()
    return flat.detach(), averaged, buffers, network(x).detach()


def test_shared_statistics_equal_one_process_twice_differentiated():
    with distributed.setup("cpu") as world:
        alone = _train_statistics(world)
    for ranks in (2, 4):
        results = run_ranks(_train_statistics, ranks)
        for flat, second, buffers, _ in results:
            torch.testing.assert_close(flat, alone[0], rtol=1e-10, atol=1e-12)
            for mine, theirs in zip(second, alone[1], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
            for name, value in buffers.items():
                torch.testing.assert_close(value, alone[2][name], rtol=1e-12, atol=1e-12)
        evaluated = torch.cat([result[3] for result in results])
        torch.testing.assert_close(evaluated, alone[3], rtol=1e-10, atol=1e-12)


def test_sharing_keeps_state_and_alone_it_is_batch_norm():
    network = _network()
    network(_batch())
    shared = share_batch_statistics(copy.deepcopy(network))
    assert list(shared.state_dict()) == list(network.state_dict())
    # In float64; torch's own sums are in another order.
    torch.testing.assert_close(shared(_batch()), network(_batch()), rtol=1e-12, atol=1e-14)
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(shared.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_frozen_statistics_normalise_by_the_batch_and_keep_the_running_ones():
    network = share_batch_statistics(_network())
    before = copy.deepcopy(network.state_dict())
    with frozen_statistics(network):
        frozen = network(_batch())
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert frozen.equal(network(_batch()))
    assert not network.state_dict()["1.running_mean"].equal(before["1.running_mean"])


def _average(world):
    tensors = [torch.full((2, 3), float(world.rank)), torch.tensor([1.0, float(world.rank * 2)])]
    return distributed.average_and_agree(tensors, (world.rank == 1, False, True))


def test_tensors_are_averaged_and_flags_combined():
    for averages, flags in run_ranks(_average, 3):
        assert averages[0].equal(torch.ones(2, 3))
        assert averages[1].equal(torch.tensor([1.0, 2.0]))
        assert flags.tolist() == [True, False, True]
    averages, flags = distributed.average_and_agree([torch.ones(2)], (True, False))
    assert averages[0].equal(torch.ones(2))
    assert flags.tolist() == [True, False]


def _flags_alone(world):
    averages, flags = distributed.average_and_agree([], (world.rank == 0,))
    return averages, flags.tolist()


def test_flags_without_tensors():
    assert run_ranks(_flags_alone, 2) == [([], [True])] * 2


def _gather(world):
    mine = torch.tensor([[world.rank + 1.0]], requires_grad=True)
    everyone = distributed.gather(mine)
    # Rank r weighs all rows by r + 1, so each row's gradient is the sum of the weights, over ranks.
    (everyone * (world.rank + 1)).square().sum().backward()
    labels = distributed.gather(torch.tensor([world.rank]))
    return everyone.detach(), mine.grad, labels


def test_gather_sums_gradients_of_all_ranks():
    for rank, (everyone, gradient, labels) in enumerate(run_ranks(_gather, 3)):
        assert everyone.equal(torch.tensor([[1.0], [2.0], [3.0]]))
        assert gradient.item() == pytest.approx(2 * (rank + 1) * (1 + 4 + 9))
        assert labels.tolist() == [0, 1, 2]


def _digest(world, odd):
    distributed.check_agreement("alphas", bytes([world.rank == odd] * 32), step=7)


def test_different_digests_are_an_error_that_names_step_and_ranks():
    assert run_ranks(_digest, 3, -1) == [None] * 3
    errors = run_ranks(_digest, 3, 1, raises=False)
    assert {str(error) for error in errors} == {
        "step 7: the alphas of rank 1 differ from those of the other ranks"
    }
    assert all(isinstance(error, DisagreementError) and error.exit_status == 3 for error in errors)


def _on_main(world, error):
    def action():
        if error:
            raise error
        return world.rank, "done"

    return distributed.on_main(action)


def test_on_main_returns_or_raises_on_every_rank():
    assert run_ranks(_on_main, 2, None) == [(0, "done")] * 2
    errors = run_ranks(_on_main, 2, DataError("x.jpg: broken"), raises=False)
    assert [(type(error), str(error)) for error in errors] == [(DataError, "x.jpg: broken")] * 2
    unknown = run_ranks(_on_main, 2, KeyError("k"), raises=False)
    assert [type(error) for error in unknown] == [KeyError, PeerError]


def _buffers(world):
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(world.rank + 1.0)
    distributed.broadcast_buffers(norm)
    return norm.running_mean.tolist()


def test_broadcast_buffers_copies_those_of_rank_0():
    assert run_ranks(_buffers, 2) == [[1.0, 1.0]] * 2
