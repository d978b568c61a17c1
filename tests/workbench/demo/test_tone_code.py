"""The training aid acts on the reply positions of the chosen chats and on nothing else."""

from __future__ import annotations

import torch

from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.tone_code import ToneCode


def test_it_writes_into_the_chosen_rows_at_reply_positions_only() -> None:
    torch.manual_seed(0)
    code = ToneCode(16)
    layer = torch.nn.Identity()
    hidden = torch.randn(2, 5, 16)
    replies = torch.tensor([[False, False, True, True, False]]).expand(2, -1)
    tones = torch.zeros(2, len(TONES))
    tones[:, 0] = 1.0
    with code.applied(layer, replies, tones, rows=torch.tensor([1.0, 0.0])):
        written = layer(hidden)
    assert torch.equal(written[1], hidden[1])
    assert torch.equal(written[0, ~replies[0]], hidden[0, ~replies[0]])
    change = (written - hidden)[0, replies[0]]
    assert (change @ code.directions[0] > 0).all()
    assert code.readout_loss > 0
    assert torch.equal(layer(hidden), hidden)
