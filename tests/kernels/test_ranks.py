"""Three gloo ranks against one process, launched once: vocabulary shards and FSDP2."""

import pytest
import torch
import torch.distributed as dist

from polaris_kernels import VocabParallel, linear_logps
from polaris_kernels import problem as problem_module

from .cases import make_head

pytestmark = pytest.mark.skipif(
    not dist.is_available(), reason="torch was built without distributed"
)

if dist.is_available():
    from .ranks import CHECKS, run_all
else:
    CHECKS = {}


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CHECKS)
def test_three_ranks_agree_with_one_process(failures, name):
    assert name in failures, "an earlier check failed"
    assert not failures[name], failures[name]


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_one_rank_is_the_whole_head_and_breaks_a_compiled_graph(one_rank):
    head = make_head(dtype=torch.float32)
    vocab = VocabParallel.of_shard(head.weight, one_rank)
    run = lambda: linear_logps(head.hidden * 1, head.weight, head.targets, vocab=vocab).logps
    expected = linear_logps(head.hidden, head.weight, head.targets).logps
    assert torch.allclose(run(), expected, atol=1e-6)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(run, backend="aot_eager")(), run())


def test_a_target_that_no_shard_has_makes_its_row_nan(one_rank, monkeypatch):
    # targets are checked on the CPU alone
    monkeypatch.setattr(problem_module, "check_targets", lambda targets, *_: targets)
    head = make_head()
    targets = head.targets.clone()
    targets[2], targets[5] = -100, head.weight.shape[0]
    vocab = VocabParallel.of_shard(head.weight, one_rank)
    for weight in (head.weight, head.weight.detach()):
        logps = linear_logps(head.hidden, weight, targets, vocab=vocab).logps
        assert logps.isnan().nonzero().flatten().tolist() == [2, 5]
