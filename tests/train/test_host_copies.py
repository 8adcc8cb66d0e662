"""Copies in host memory that are taken again and again."""

import torch

from xtdist.train.state import HostCopies


def test_a_copy_has_the_values_of_its_time_and_the_memory_of_the_last_one():
    host, weights = HostCopies(), torch.arange(6.0)
    first = host.copy("a", weights)
    assert first.data_ptr() != weights.data_ptr()
    weights += 1
    assert first.tolist() == [0, 1, 2, 3, 4, 5]
    second = host.copy("a", weights)
    host.wait()
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == [1, 2, 3, 4, 5, 6]


def test_keys_have_memory_of_their_own_and_another_shape_or_type_gets_new():
    host = HostCopies()
    kept = host.copy("a", torch.zeros(2, 3))
    others = [
        host.copy("b", torch.ones(2, 3)),
        host.copy("a", torch.ones(3, 2)),
        host.copy("a", torch.ones(3, 2, dtype=torch.bfloat16)),
    ]
    assert not kept.any()
    assert len({each.data_ptr() for each in [kept, *others]}) == 4
    assert [(each.shape, each.dtype) for each in others[1:]] == [
        ((3, 2), torch.float32),
        ((3, 2), torch.bfloat16),
    ]


def test_a_part_of_a_larger_tensor_is_copied_alone_and_whole():
    row = torch.arange(10.0, requires_grad=True)
    copy = HostCopies().copy("a", row[2:5])
    assert copy.tolist() == [2, 3, 4]
    assert copy.is_contiguous()
    assert not copy.requires_grad
    assert copy.untyped_storage().nbytes() == 3 * 4
