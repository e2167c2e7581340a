"""Contract of the net in PyTorch."""

import pytest
from net_contract import NetContract
from nets import make_net_trainer

pytest.importorskip("torch", reason="no PyTorch: pip install 'hpo[torch]'")


class TestTorchNet(NetContract):
    backend = "torch"

    def test_checkpoint_of_other_backend_is_refused(self):
        state = make_net_trainer(backend="torch").save()
        with pytest.raises(ValueError, match="the checkpoint of another training"):
            make_net_trainer(backend="numpy").restore(state)
