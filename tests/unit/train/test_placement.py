"""How much each training worker reserves, and requests that no cluster can hold."""

from __future__ import annotations

import pytest

from cfer.errors import InputError
from cfer.train.placement import Node, place_workers


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "asked", "expected"),
    [
        ([Node(2, 0)], 1, "auto", 0, (1.0, False)),
        ([Node(2, 0)], 2, "cpu", 0, (0.5, False)),
        ([Node(2, 0)], 8, "auto", 0, (0.12, False)),
        ([Node(1, 0)], 1, "auto", 0, (0.5, False)),
        ([Node(8, 0)], 2, "auto", 3, (3.0, False)),
        ([Node(16, 1)], 1, "auto", 0, (1.0, True)),
        ([Node(16, 1)], 1, "cpu", 0, (1.0, False)),
        ([Node(16, 1)], 2, "auto", 0, (1.0, False)),
        # 3 CPUs for 3 workers, but no node has room for more than one of 0.7 and above.
        ([Node(1, 0), Node(1, 0), Node(2, 0)], 4, "auto", 0, (0.75, False)),
        ([Node(4, 2), Node(32, 0)], 2, "gpu", 0, (1.0, True)),
        # The CPUs beside the GPUs are few, and those of the other node don't help.
        ([Node(1, 2), Node(32, 0)], 2, "gpu", 0, (0.5, True)),
    ],
)
def test_workers_are_placed_with_room_to_spare(
    nodes: list[Node], workers: int, device: str, asked: float, expected: tuple[float, bool]
) -> None:
    placement = place_workers(nodes, workers, device, asked)
    assert (placement.cpus, placement.use_gpu) == expected
    total = sum(node.cpus for node in nodes)
    assert workers * placement.cpus <= total - min(1, total / 2) + 1e-9
    if workers > total:
        assert placement.warning == (
            f"--workers {workers} share {total} CPUs: this works, slower than --workers {total}"
        )
    else:
        assert placement.warning == ""


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "asked", "message"),
    [
        ([Node(2, 0)], 1, "gpu", 0, "the cluster has 0 GPUs.*; give --workers 1 --device cpu"),
        ([Node(8, 1)], 2, "gpu", 0, "the cluster has 1 GPUs.*; give --workers 1$"),
        ([Node(2, 0)], 2, "cpu", 1, "has 2 CPUs on 1 nodes, and 1 must stay free"),
        ([Node(4, 0), Node(4, 0)], 1, "cpu", 5, "--cpus-per-worker 5"),
        ([Node(2, 0)], 1000, "cpu", 0, "too many"),
    ],
)
def test_what_can_never_be_placed_is_refused(
    nodes: list[Node], workers: int, device: str, asked: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place_workers(nodes, workers, device, asked)
