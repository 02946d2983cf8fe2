"""Tiles of rows times one matrix, by oneDNN and without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from spaces import products
from spaces.products import Matrix
from trainers.cost import Tally

ROWS = (8, 8, 3, 1, 0)


def given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 40, dtype=dtype), torch.randn(6, dtype=dtype)
    return weight, bias, [torch.randn(rows, 40, dtype=dtype) for rows in ROWS]


@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_onednns_order_gives_the_same_for_tiles_of_any_length(biased: bool) -> None:
    weight, bias, tiles = given()
    matrix = Matrix(weight, bias if biased else None, ROWS[0])
    assert matrix.weight.is_mkldnn
    for tile in tiles:
        # Sums of 40 products, in another order.
        wanted = F.linear(tile, weight, bias if biased else None)
        torch.testing.assert_close(matrix(tile), wanted, rtol=1e-6, atol=1e-5)


@torch.no_grad()
def test_a_matrix_that_is_a_view_of_a_weight() -> None:
    _, _, tiles = given()
    weight = torch.randn(6, 10, 2, 2).contiguous(memory_format=torch.channels_last)
    flat = weight.permute(0, 2, 3, 1).reshape(6, 40)
    torch.testing.assert_close(Matrix(flat, None, 8)(tiles[0]), F.linear(tiles[0], flat), rtol=1e-6, atol=1e-5)


@torch.no_grad()
def test_in_bfloat16_and_within_autocast_it_is_ordered_too() -> None:
    weight, bias, tiles = given()
    short = [value.bfloat16() for value in (weight, bias)]
    matrices = [Matrix(*short, ROWS[0])]
    with torch.autocast("cpu", torch.bfloat16):
        matrices.append(Matrix(weight, bias, ROWS[0]))
        wanted = [F.linear(tile, weight, bias) for tile in tiles]
        found = [matrix(tile) for matrix in matrices for tile in tiles]
    assert {matrix.weight.is_mkldnn for matrix in matrices} == {products._bfloat16()}
    for one, other in zip(found, 2 * wanted, strict=True):
        assert one.dtype == torch.bfloat16
        # Two neighbours of bfloat16, sums of 40 products being rounded once.
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@torch.no_grad()
def test_other_precisions_are_linear(dtype: torch.dtype) -> None:
    weight, bias, tiles = given(dtype)
    assert torch.equal(Matrix(weight, bias, 8)(tiles[0]), F.linear(tiles[0], weight, bias))


@torch.no_grad()
def test_without_onednn_it_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias, tiles = given()
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(Matrix(weight, bias, 8)(tiles[0]), F.linear(tiles[0], weight, bias))
    monkeypatch.setattr(products, "_ONEDNN", object())
    assert torch.equal(Matrix(weight, bias, 8)(tiles[0]), F.linear(tiles[0], weight, bias))


def test_gradients_and_autocast_are_those_of_linear() -> None:
    weight, bias, tiles = given()
    weight.requires_grad_()
    gradients = [torch.autograd.grad(found(tiles[0]).square().sum(), weight)[0] for found in (
        Matrix(weight, bias, 8), lambda tile: F.linear(tile, weight, bias),
    )]  # fmt: skip
    assert torch.equal(*gradients)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert Matrix(weight, bias, 8)(tiles[0]).dtype == torch.bfloat16


@torch.no_grad()
def test_its_multiply_adds_are_counted() -> None:
    weight, bias, tiles = given()
    with Tally() as tally:
        matrix = Matrix(weight, bias, 8)
        for tile in tiles:
            matrix(tile)
    assert sum(tally.parts.values()) == sum(ROWS) * 40 * 6
