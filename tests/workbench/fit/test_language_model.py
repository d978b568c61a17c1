"""The loss edits are fitted to, against one unpadded forward pass per row with a hook written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ksteer_vllm.data.positions import REPLY
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.language_model import FrozenModel, Tokens
from testbed.models import HIDDEN_SIZE, NUM_LAYERS, make_model

LAYER = 2
ROWS = [  # lengths that need padding, and a reply of one token
    Tokens([5, 6, 7], [20, 21, 2]),
    Tokens([9], [30]),
    Tokens([11, 12, 13, 14, 15], [40, 41, 42, 43, 2]),
]
TOLERANCE = (
    1e-5  # float32 sums of a tiny model in different batch shapes; a position off moves it by over 1e-2
)


class Push(nn.Module):
    """An edit that depends on x."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + torch.linspace(-1, 1, HIDDEN_SIZE)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    folder = make_model(request.param, tmp_path_factory.mktemp("lm") / request.param)
    return FrozenModel(str(folder), LAYER, NUM_LAYERS)


def by_hand(model: FrozenModel, row: Tokens, edit: nn.Module | None) -> Tensor:
    """Cross-entropies [R] of the reply tokens: position P-1+j is edited and predicts reply token j."""
    inner = model.model.transformer if hasattr(model.model, "transformer") else model.model.model
    block = (inner.h if hasattr(inner, "h") else inner.layers)[LAYER]
    first = len(row.prompt) - 1

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if edit is not None:
            hidden = torch.cat([hidden[:, :first], edit(hidden[:, first:])], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(hook)
    with torch.no_grad():
        logits = model.model(torch.tensor([[*row.prompt, *row.reply[:-1]]])).logits[0].double()
    handle.remove()
    log_probs = torch.log_softmax(logits[first:], -1)
    return -log_probs[torch.arange(len(row.reply)), torch.tensor(row.reply)]


@pytest.mark.parametrize("edit", [None, Push()])
def test_the_loss_is_the_mean_over_all_reply_tokens(model: FrozenModel, edit: nn.Module | None) -> None:
    wanted = torch.cat([by_hand(model, row, edit) for row in ROWS]).mean().item()
    assert model.loss(ROWS, edit).item() == pytest.approx(wanted, abs=TOLERANCE)
    assert model.mean_loss(ROWS, edit, batch_size=2) == pytest.approx(wanted, abs=TOLERANCE)


def test_the_edit_moves_the_loss_and_then_is_gone(model: FrozenModel) -> None:
    before = model.loss(ROWS, None).item()
    assert abs(model.loss(ROWS, Push()).item() - before) > 1e-2
    assert model.loss(ROWS, None).item() == before


def test_the_stream_is_the_block_output_at_the_edited_positions(model: FrozenModel) -> None:
    found, start = model.stream(ROWS), 0
    for row in ROWS:
        tokens = torch.tensor([[*row.prompt, *row.reply[:-1]]])
        with torch.no_grad():  # entry l + 1 is the output of block l
            hidden = model.model(tokens, output_hidden_states=True).hidden_states[LAYER + 1][0]
        end = start + len(row.reply)
        torch.testing.assert_close(found[start:end], hidden[len(row.prompt) - 1 :], rtol=0, atol=TOLERANCE)
        start = end
    assert start == len(found)


def test_the_edited_positions_are_those_the_engine_records(model: FrozenModel) -> None:
    row = LabelledRow(prompt="w10 w11 w12", reply="w20 w21", labels=())
    tokens = model.encode(row, system=True)
    recorded, first, end = REPLY.of(model.tokenizer, row)
    assert list(tokens.prompt) + list(tokens.reply) == [*recorded, model.tokenizer.eos_token_id]
    assert (first, end) == (len(tokens.prompt) - 1, len(tokens) - 1)


def test_system_messages_are_left_out_unless_wanted_or_alone(model: FrozenModel) -> None:
    chat = [{"role": "system", "content": "w10"}, {"role": "user", "content": "w11"}]
    row = LabelledRow.model_validate({"prompt": chat, "reply": "w20", "labels": []})
    alone = LabelledRow.model_validate({"prompt": chat[:1], "reply": "w20", "labels": []})
    assert 10 in model.encode(row, system=True).prompt
    assert 10 not in model.encode(row, system=False).prompt
    assert 11 in model.encode(row, system=False).prompt
    assert 10 in model.encode(alone, system=False).prompt


def test_a_row_that_does_not_fit_the_model_is_refused(model: FrozenModel) -> None:
    row = LabelledRow(prompt="w10 " * 300, reply="w20 " * 300, labels=())
    with pytest.raises(DataError, match="prompt and reply have 601 tokens; the model takes 512"):
        model.encode(row, system=True)
