"""Loading and clearing of the device tables."""

import pytest
import torch

from ksteer_kernels import NO_SLOT, ProbeTables, RowTables, Workspace


def tables(dtype=torch.float32):
    return ProbeTables.allocate(2, 8, 3, 10, dtype, "cpu")


def probe(h1=5, h2=4, labels=2, d=10):
    return {
        "w1": torch.randn(h1, d),
        "b1": torch.randn(h1),
        "w2": torch.randn(h2, h1),
        "b2": torch.randn(h2),
        "vectors": torch.randn(labels, d),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_pads_with_zeros_and_overwrites_what_was_there(dtype):
    store, small = tables(dtype), probe()
    store.load(1, **probe(8, 8, 3))
    store.load(1, **small)
    assert torch.equal(store.w1[1, :5], small["w1"].to(dtype))
    assert torch.equal(store.w2[1, :4, :5], small["w2"])
    assert store.widths == [(0, 0), (5, 4)]
    assert store.num_labels == [0, 2]
    for padding in (store.w1[1, 5:], store.b1[1, 5:], store.w2[1, 4:], store.w2[1, :, 5:], store.b2[1, 4:]):
        assert not padding.any()
    assert not store.vectors[1, 2:].any()
    assert not store.w1[0].any()


def test_gram_is_of_the_stored_weights():
    store = tables(torch.bfloat16)
    store.load(0, **probe())
    stored = store.w1[0].double()
    assert torch.equal(store.gram[0], (stored @ stored.T).float())


def test_without_vectors():
    store, weights = tables(), probe()
    store.load(0, **probe())
    store.load(0, **{**weights, "vectors": None})
    assert not store.vectors[0].any()
    assert store.num_labels[0] == 0


def test_clear():
    store = tables()
    store.load(0, **probe())
    store.clear(0)
    assert store.widths[0] == (0, 0)
    for table in (store.w1, store.b1, store.w2, store.b2, store.gram, store.vectors):
        assert not table[0].any()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("w1", probe(h1=9)),
        ("w2", probe(h2=9)),
        ("w1", probe(d=11)),
        ("vectors", probe(labels=4)),
        ("b1", {**probe(), "b1": torch.zeros(4)}),
        ("b2", {**probe(), "b2": torch.zeros(4, 1)}),
        ("w2", {**probe(), "w2": torch.zeros(4, 4)}),
        ("vectors", {**probe(), "vectors": torch.zeros(2, 9)}),
        ("w2", {**probe(), "w2": torch.full((4, 5), float("nan"))}),
        ("w1", {**probe(), "w1": torch.zeros(5, 10, dtype=torch.int32)}),
    ],
)
def test_a_bad_field_is_named_and_changes_nothing(field, change):
    store = tables()
    store.load(0, **probe())
    before = store.w1.clone()
    with pytest.raises(ValueError, match=f"^{field}: "):
        store.load(0, **change)
    assert torch.equal(store.w1, before)
    assert store.widths[0] == (5, 4)


def test_too_large_for_the_stored_dtype():
    store = tables(torch.float16)
    with pytest.raises(ValueError, match=r"^w1: "):
        store.load(0, **{**probe(), "w1": torch.full((5, 10), 1e6)})


@pytest.mark.parametrize("slot", [-1, 2])
def test_slot_out_of_range(slot):
    with pytest.raises(ValueError, match=r"^slot: "):
        tables().load(slot, **probe())


def test_nbytes():
    store = tables(torch.bfloat16)
    assert store.nbytes == 2 * (2 * (8 * 10 + 3 * 10) + 4 * (8 + 64 + 8 + 64))


def test_rows_start_and_reset_to_nothing():
    rows = RowTables.allocate(2, 3, 4, 6, "cpu")
    assert rows.readout.shape == (2, 3, 6)
    assert (rows.slot == NO_SLOT).all()
    rows.slot[:], rows.strength[:], rows.readout[:], rows.windows[:] = 1, 2.0, 3.0, 4
    rows.num_steps[:], rows.decay[:], rows.program[:] = 5, 0.5, 2
    rows.reset_row(1)
    fresh = RowTables.allocate(2, 3, 4, 6, "cpu")
    for name in ("slot", "program", "num_steps", "strength", "decay", "readout"):
        assert torch.equal(getattr(rows, name)[:, 1], getattr(fresh, name)[:, 1]), name
        assert (getattr(rows, name)[:, 0] != getattr(fresh, name)[:, 0]).all(), name
    assert not rows.windows[1].any()
    with pytest.raises(ValueError, match=r"^row: "):
        rows.reset_row(3)


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match=r"^max_width: "):
        ProbeTables.allocate(1, 0, 1, 1, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"^num_rows: "):
        RowTables.allocate(1, 0, 1, 1, "cpu")
    with pytest.raises(ValueError, match="max_tokens"):
        Workspace.allocate(0, 1, "cpu")


def test_workspace_has_room_for_every_batch_size():
    workspace = Workspace.allocate(1500, 3, "cpu")
    for num_tokens in (1, 7, 1024, 1025, 1500):
        assert workspace.partial_sums(num_tokens).shape[1:] == (num_tokens, 3)
    assert workspace.nbytes == 4 * 3 * (4 * 1500 + 8 * 1024)
