"""Loading and clearing of the device tables."""

import pytest
import torch

from ksteer_kernels import NO_SLOT, Activation, ProbeTables, Program, RowTables, SlotWeights, Workspace


def tables(dtype=torch.float32):
    return ProbeTables.allocate(2, 8, 3, 10, dtype, "cpu")


def weights(h1=5, h2=4, labels=2, d=10, **changes):
    """A probe with everything an AFFINE slot has, too."""
    given = {
        "basis": torch.randn(h1, d),
        "bias": torch.randn(h1),
        "matrix": torch.randn(h2, h1),
        "matrix_bias": torch.randn(h2),
        "head": torch.randn(labels, h2),
        "head_bias": torch.randn(labels),
        "activation": torch.full((h1,), int(Activation.JUMPRELU)),
        "threshold": torch.randn(h1),
        "gate_unit": torch.arange(h1) - 1,
    }
    return SlotWeights(**{**given, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_pads_and_overwrites_what_was_there(dtype):
    store, small = tables(dtype), weights()
    store.load(1, weights(8, 8, 3))
    store.load(1, small)
    empty = tables(dtype)
    for name, given in small.given().items():
        table, fresh = getattr(store, name), getattr(empty, name)
        inside = (1, *(slice(0, size) for size in given.shape))
        assert torch.equal(table[inside], given.to(table.dtype)), name
        padding = table.clone()
        padding[inside] = fresh[inside]
        assert torch.equal(padding, fresh), name
    assert store.cpu_sizes == [(0, 0, 0), (5, 4, 2)]
    assert store.sizes.tolist() == [[0, 0, 0], [5, 4, 2]]


def test_gram_is_of_the_stored_weights():
    store = tables(torch.bfloat16)
    store.load(0, weights())
    stored = store.basis[0].double()
    assert torch.equal(store.gram[0], (stored @ stored.T).float())


def test_only_a_basis():
    store = tables()
    store.load(0, weights())
    store.load(0, SlotWeights(torch.ones(3, 10)))
    assert store.cpu_sizes[0] == (3, 0, 0)
    for name in ("bias", "matrix", "matrix_bias", "head", "head_bias", "activation", "threshold"):
        assert not getattr(store, name)[0].any(), name
    assert (store.gate_unit[0] == -1).all()


def test_clear():
    store, empty = tables(), tables()
    store.load(0, weights())
    store.cpu_slot(0)
    store.clear(0)
    for name, table in store.tensors().items():
        assert torch.equal(table, empty.tensors()[name]), name
    assert store.cpu_sizes == empty.cpu_sizes
    assert not store.cpu_slots


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("basis", weights(h1=9)),
        ("matrix", weights(h2=9)),
        ("basis", weights(d=11)),
        (
            "basis",
            weights(
                basis=torch.zeros(0, 10),
                bias=None,
                matrix=torch.zeros(4, 0),
                activation=None,
                threshold=None,
                gate_unit=None,
            ),
        ),
        ("head", weights(labels=4)),
        ("head", weights(head=torch.zeros(2, 5))),
        ("head", weights(matrix=None, matrix_bias=None)),
        ("head_bias", weights(head_bias=torch.zeros(3))),
        ("bias", weights(bias=torch.zeros(4))),
        ("matrix_bias", weights(matrix_bias=torch.zeros(4, 1))),
        ("matrix", weights(matrix=torch.zeros(4, 4))),
        ("matrix", weights(matrix=torch.full((4, 5), float("nan")))),
        ("basis", weights(basis=torch.zeros(5, 10, dtype=torch.int32))),
        ("threshold", weights(threshold=torch.zeros(6))),
        ("activation", weights(activation=torch.zeros(5))),
        ("activation", weights(activation=torch.full((5,), 4))),
        ("gate_unit", weights(gate_unit=torch.full((5,), 5))),
        ("gate_unit", weights(gate_unit=torch.full((5,), -2))),
    ],
)
def test_a_bad_field_is_named_and_changes_nothing(field, change):
    store = tables()
    store.load(0, weights())
    before = {name: table.clone() for name, table in store.tensors().items()}
    with pytest.raises(ValueError, match=f"^{field}: "):
        store.load(0, change)
    for name, table in store.tensors().items():
        assert torch.equal(table, before[name]), name
    assert store.cpu_sizes[0] == (5, 4, 2)


def test_too_large_for_the_stored_dtype():
    with pytest.raises(ValueError, match=r"^basis: "):
        tables(torch.float16).load(0, weights(basis=torch.full((5, 10), 1e6)))


@pytest.mark.parametrize("slot", [-1, 2])
def test_slot_out_of_range(slot):
    with pytest.raises(ValueError, match=r"^slot: "):
        tables().load(slot, weights())


def test_nbytes():
    store = tables(torch.bfloat16)
    widths = 5 * 8 + 3 * 8 * 8 + 3 * 8 + 3 + 3 + 10 + 1
    assert store.nbytes == 2 * (2 * 8 * 10 + 4 * widths)


def test_rows_start_as_nothing():
    rows = RowTables.allocate(2, 3, 4, 6, "cpu", num_stages=5)
    assert rows.readout.shape == rows.scale.shape == (10, 3, 4)
    assert rows.label_weights.shape == (10, 3, 6)
    assert rows.windows.shape == (5, 3, 4)
    assert rows.fade.shape == (5, 3, 2)
    assert rows.divisor.shape == (5, 3)
    assert (rows.num_stages, rows.num_rows) == (5, 3)
    assert (rows.slot == NO_SLOT).all()
    assert (rows.program == Program.GRADIENT).all()
    assert torch.isinf(rows.cap).all()
    assert not rows.windows.any()
    assert rows.nbytes == 4 * (10 * 3 * (11 + 2 * 4 + 6)) + 8 * 5 * 3 * 7


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match=r"^max_width: "):
        ProbeTables.allocate(1, 0, 1, 1, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"^num_rows: "):
        RowTables.allocate(1, 0, 1, 1, "cpu")
    with pytest.raises(ValueError, match=r"^num_stages: "):
        RowTables.allocate(1, 1, 1, 1, "cpu", num_stages=0)
    with pytest.raises(ValueError, match="max_tokens"):
        Workspace.allocate(0, 1, "cpu")


def test_workspace_has_room_for_every_batch_size():
    workspace = Workspace.allocate(1500, 3, "cpu", 2)
    for num_tokens in (1, 7, 1024, 1025, 1500):
        assert workspace.partial_sums(num_tokens).shape[1:] == (num_tokens, 3)
        assert workspace.square_sums(num_tokens).shape == workspace.partial_sums(num_tokens).shape[:2]
    sums = 8 * 1024
    assert workspace.nbytes == 4 * (sums * 3 + sums + 1500 * (4 * 3 + 2 + 3)) + 8
