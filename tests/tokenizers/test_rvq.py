import pytest
import torch

from partita.tokenizers.bottlenecks.rvq import RVQ


def built(dim=4, **options):
    quantizer = RVQ(**options)
    quantizer.build(dim)
    return quantizer


def trained(steps=60, dim=4, **options):
    quantizer = built(dim, **{"num_codebooks": 3, "cardinality": 16, "decay": 0.9} | options)
    for _ in range(steps):
        quantizer.quantize(torch.randn(4, dim, 64))
    return quantizer


def test_codes_decode_to_the_quantized_latents():
    quantizer = trained().eval()
    latents = torch.randn(2, 4, 20)
    quantized = quantizer.quantize(latents)
    assert quantized.codes.shape == (2, 3, 20)
    assert quantized.codes.dtype == torch.int64
    assert torch.allclose(quantizer.decode(quantized.codes), quantized.latents, atol=1e-5)
    assert torch.equal(quantizer.encode(latents, 3), quantized.codes)


def test_encoding_takes_the_nearest_entry_of_what_is_left():
    quantizer = trained().eval()
    latents = torch.randn(1, 4, 10)
    residual = latents[0].T.clone()
    for k in range(3):
        nearest = [((frame - quantizer.codebooks[k]) ** 2).sum(-1).argmin().item() for frame in residual]
        assert quantizer.encode(latents, 3)[0, k].tolist() == nearest
        residual -= quantizer.codebooks[k][nearest]


def test_fewer_codebooks_are_a_prefix_and_worse():
    quantizer = trained().eval()
    latents = torch.randn(4, 4, 50)
    codes = quantizer.encode(latents, 3)
    assert torch.equal(quantizer.encode(latents, 2), codes[:, :2])
    errors = [(quantizer.decode(codes[:, :k]) - latents).square().mean() for k in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


def test_gradient_passes_unchanged():
    """Once, whatever the number of codebooks."""
    quantizer = trained(dropout=0.0)
    latents = torch.randn(2, 4, 8, requires_grad=True)
    weights = torch.randn(2, 4, 8)
    (quantizer.quantize(latents).latents * weights).sum().backward()
    assert torch.allclose(latents.grad, weights)


def test_commitment_pulls_latents_to_entries():
    quantizer = trained()
    latents = torch.randn(2, 4, 8, requires_grad=True)
    loss = quantizer.quantize(latents).commitment
    loss.backward()
    assert loss > 0
    moved = latents.detach() - 0.5 * latents.grad / latents.grad.abs().max()
    quantizer.eval()
    before = (quantizer.quantize(latents).latents - latents).square().mean()
    assert (quantizer.quantize(moved).latents - moved).square().mean() < before


def test_all_entries_live():
    quantizer = trained(steps=100).eval()
    codes = quantizer.encode(torch.randn(8, 4, 500), 3)
    for k in range(3):
        assert codes[:, k].unique().numel() >= 15


def test_entries_that_died_come_back():
    quantizer = trained()
    with torch.no_grad():
        for layer in quantizer.layers.layers:
            layer._codebook.embed[:, 4:] = 100.0
            layer._codebook.embed_avg[:, 4:] = 100.0 * layer._codebook.cluster_size[:, 4:, None]
    for _ in range(100):
        quantizer.quantize(torch.randn(4, 4, 64))
    codes = quantizer.eval().encode(torch.randn(8, 4, 500), 3)
    assert all(codes[:, k].unique().numel() >= 15 for k in range(3))


def test_without_revival_they_do_not():
    quantizer = trained(revive_below=0.0)
    with torch.no_grad():
        codebook = quantizer.layers.layers[0]._codebook
        codebook.embed[:, 4:] = 100.0
        codebook.embed_avg[:, 4:] = 100.0 * codebook.cluster_size[:, 4:, None]
    for _ in range(50):
        quantizer.quantize(torch.randn(4, 4, 64))
    assert quantizer.eval().encode(torch.randn(8, 4, 500), 1).unique().numel() == 4


def test_dropout_draws_a_number_of_codebooks_per_example():
    quantizer = trained(dropout=1.0)
    latents = torch.randn(300, 4, 2)
    before = quantizer.codebooks
    result = quantizer.quantize(latents)
    fusions = torch.stack([before[k][result.codes[:, k]] for k in range(3)]).cumsum(0).mT  # [K, B, D, S]
    distances = (fusions - result.latents).abs().amax((2, 3))  # to the sum of the first 1, 2 and 3
    used = distances.argmin(0)
    assert distances.amin(0).max() < 1e-5
    assert all(60 < (used == k).sum() < 140 for k in range(3))


def test_what_dropout_leaves_out_does_not_count():
    """Commitment and moving averages, against sums over the examples that use a codebook, by hand."""
    quantizer = trained(dropout=1.0, revive_below=0.0)
    books = quantizer.codebooks.clone()
    sizes = torch.stack([layer._codebook.cluster_size[0] for layer in quantizer.layers.layers])
    latents = torch.randn(40, 4, 3)
    result = quantizer.quantize(latents)
    expected, counts = [], torch.zeros_like(sizes)
    for example, codes, made in zip(latents.mT, result.codes, result.latents.mT, strict=True):
        residual, distances, found = example, [], torch.zeros_like(example)
        for book, indices, count in zip(books, codes, counts, strict=True):
            fusions = book[indices]
            distances.append((residual - fusions).square().mean())
            count += torch.bincount(indices, minlength=16)
            residual, found = residual - fusions, found + fusions
            if torch.allclose(found, made, atol=1e-5):  # it uses no further one
                break
        expected.append(torch.stack(distances).mean())
    torch.testing.assert_close(result.commitment, torch.stack(expected).mean())
    assert counts.sum(1).unique().numel() == 3  # each codebook is used by fewer
    after = torch.stack([layer._codebook.cluster_size[0] for layer in quantizer.layers.layers])
    torch.testing.assert_close(after, 0.9 * sizes + 0.1 * counts)


def test_late_codebooks_live_although_few_examples_use_them():
    quantizer = trained(steps=150, num_codebooks=8, dropout=1.0).eval()
    codes = quantizer.encode(torch.randn(8, 4, 500), 8)
    assert all(codes[:, k].unique().numel() >= 13 for k in range(8))


def test_a_codebook_that_no_example_uses_stays_finite():
    quantizer = trained(dropout=1.0)
    for _ in range(30):
        result = quantizer.quantize(torch.randn(1, 4, 4))
    assert result.latents.isfinite().all()
    assert quantizer.codebooks.isfinite().all()


def test_revival_as_a_count_of_two():
    """SoundStream's count at 64 examples of 50 frames and 1,024 entries: 0.64 of the 3.125 uses of each."""
    quantizer = built(2, num_codebooks=2, revive_below=0.64, dropout=0.0, kmeans_iterations=1)
    quantizer.quantize(torch.randn(64, 2, 50))
    assert [layer._codebook.threshold_ema_dead_code for layer in quantizer.layers.layers] == [2.0, 2.0]


def test_no_dropout_in_evaluation():
    quantizer = trained(dropout=1.0).eval()
    latents = torch.randn(50, 4, 2)
    assert torch.allclose(
        quantizer.quantize(latents).latents, quantizer.decode(quantizer.encode(latents, 3)), atol=1e-5
    )


def test_evaluation_changes_nothing():
    quantizer = built(num_codebooks=2, cardinality=8).eval()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.quantize(torch.randn(2, 4, 30))
    quantizer.encode(torch.randn(2, 4, 30), 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())


def test_state_is_all_there_is():
    """Two quantizers of equal state and random seed stay equal: a run can be taken up anywhere."""
    first, second = trained(), built(num_codebooks=3, cardinality=16, decay=0.9)
    second.load_state_dict(first.state_dict())
    for quantizer in (first, second):
        torch.manual_seed(5)
        for _ in range(5):
            quantizer.quantize(torch.randn(2, 4, 8))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_few_frames_are_enough_to_start():
    quantizer = built(num_codebooks=2, cardinality=64)
    assert quantizer.quantize(torch.randn(1, 4, 3)).latents.isfinite().all()


@pytest.mark.parametrize("wrong", [{"num_codebooks": 0}, {"cardinality": 1}, {"decay": 1.5}, {"dropout": -0.1}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=r"must be|needs"):
        RVQ(**wrong)


def test_codebooks_stay_if_the_encoder_is_frozen():
    torch.manual_seed(0)
    quantizer = built(num_codebooks=2, cardinality=8, warmup_steps=0).train()
    step, latents = torch.tensor(0), torch.randn(2, 4, 50)
    quantizer(latents, step)
    fitted = quantizer.codebooks
    quantizer(latents + 1, step)
    assert torch.equal(quantizer.codebooks, fitted)
    quantizer((latents + 1).requires_grad_(), step)
    assert not torch.equal(quantizer.codebooks, fitted)
