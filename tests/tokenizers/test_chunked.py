"""Encoding and decoding in chunks, against the whole."""

import pytest
import torch

from partita.layers.chunks import Chunks, Local, in_chunks
from partita.recipe.compose import compose
from partita.recipe.plan import check_recipe
from partita.recipe.recipe_files import presets
from partita.system.assembly import Assembly
from partita.tokenizers.adversarial import Losses
from partita.tokenizers.autoencoders.dac import DAC
from partita.tokenizers.autoencoders.seanet import SEANet, SEANetShape
from partita.tokenizers.autoencoders.stft_convnext import STFTConvNeXt
from partita.tokenizers.base import LatentView
from partita.tokenizers.bottlenecks.rvq import RVQ
from partita.tokenizers.chunked import decode_long, encode_long
from partita.tokenizers.kmeans import KMeans
from partita.tokenizers.log_mel import LogMel
from partita.tokenizers.neural_codec import NeuralCodec

SHAPES = {
    "soundstream": SEANetShape(width=4, strides=(2, 4, 5)),
    "centered": SEANetShape(width=4, strides=(5, 3), causal=False),
    "recurrent": SEANetShape(
        width=4, strides=(4, 2), dilations=(1,), lstm_layers=2, shortcut="conv", normalization="weight_norm"
    ),
}
ENCODEC = {
    "dilations": (1,),
    "residual_kernel": 3,
    "last_kernel": 7,
    "compress": 2,
    "lstm_layers": 2,
    "normalization": "weight_norm",
    "edges": "reflect",
}
SHAPES |= {
    "encodec-24khz": SEANetShape(width=4, strides=(2, 4, 5, 8), shortcut="conv", **ENCODEC),
    "encodec-32khz": SEANetShape(width=4, strides=(4, 4, 5, 8), causal=False, **ENCODEC),
}


def spectral(overlap):
    return STFTConvNeXt(
        overlap=overlap, encoder_width=8, encoder_depth=1, decoder_width=8, decoder_depth=2, frame_rate=50
    )


def codec(autoencoder):
    return NeuralCodec(
        autoencoder=autoencoder,
        bottleneck=RVQ(num_codebooks=3, cardinality=16),
        sample_rate=2000,
        dim=8,
        losses=Losses(adversarial=0, feature_matching=0),
    )


@pytest.fixture(params=[*SHAPES, "dac", "spectral", "odd", "latents"])
def tokenizer(request):
    torch.manual_seed(0)
    name = request.param
    if name == "latents":
        return LatentView(codec(SEANet(network=SHAPES["soundstream"])).eval())
    if name == "dac":
        return codec(DAC(encoder_width=4, decoder_width=32, strides=(2, 5, 4), initialization="preserving")).eval()
    if name in ("spectral", "odd"):
        return codec(spectral(3 if name == "odd" else 4)).eval()
    return codec(SEANet(network=SHAPES[name])).eval()


@pytest.fixture
def whole(tokenizer):
    """Audio of 2.5 s, what it is encoded as, and what that is decoded to."""
    spec = tokenizer.spec
    audio = torch.randn(2, 1, 5 * spec.sample_rate // 2 + 7) * 0.2
    with torch.inference_mode():
        encoded = tokenizer.encode(audio)
        return audio, encoded, tokenizer.decode(encoded)


@pytest.mark.parametrize("chunk", [0.02, 0.1, 0.9])
def test_chunks_are_together_the_whole(tokenizer, whole, chunk):
    audio, encoded, decoded = whole
    with torch.inference_mode():
        torch.testing.assert_close(encode_long(tokenizer, audio, chunk), encoded, atol=1e-5, rtol=0)
        torch.testing.assert_close(decode_long(tokenizer, encoded, chunk), decoded, atol=1e-5, rtol=0)
    assert decoded.std() > 1e-3


def test_audio_is_final_as_early_as_it_can_be(tokenizer, whole):
    """What a frame influences is found by changing it."""
    encoded, decoded = whole[1:]
    other, middle = encoded.clone(), encoded.shape[-1] // 2
    other[:, :, middle] = 1 - other[:, :, middle].clamp(max=1)
    hop = round(tokenizer.spec.sample_rate / tokenizer.spec.rate)
    with torch.inference_mode():
        changed = (tokenizer.decode(other) != decoded).any(1).any(0).nonzero()
        earliest = int(changed[0] // hop) - middle
        after = sum(step.after for step in tokenizer.decoding_steps() if isinstance(step, Local))
        assert -after <= earliest <= 1 - after
        chunks, made = Chunks(tokenizer.decoding_steps()), 0
        for frame in range(middle):
            if (chunk := chunks.push(encoded[..., frame : frame + 1])) is not None:
                made += chunk.shape[-1]
    assert made == (middle - after) * hop


def test_no_layer_sees_more_than_a_chunk_and_its_context():
    seen = []
    step = Local(lambda x: seen.append(x.shape[-1]) or x, before=3, after=2)
    assert torch.equal(in_chunks([step], torch.arange(1000.0)[None, None], 10), torch.arange(1000.0)[None, None])
    assert max(seen) == 10 + 3 + 2


def test_clusters_of_features_are_encoded_in_chunks():
    audio = torch.randn(1, 1, 9000) * 0.3
    clusters = KMeans(features=LogMel(sample_rate=2000, bands=8), cardinality=8)
    clusters.centers.data = clusters.features.encode(audio)[0, :, ::30][:, :8].mT
    assert torch.equal(encode_long(clusters, audio, 0.5), clusters.encode(audio))
    assert clusters.encode(audio).unique().numel() > 2
    assert clusters.decoding_steps() is None  # phases are estimated for the whole clip


@pytest.mark.parametrize(
    "name", [n for n in presets("tokenizer") if n.startswith(("soundstream", "spectral", "encodec-", "dac-"))]
)
def test_presets_decode_the_first_chunk_of_a_stream_within_a_second_and_a_half(name):
    slot = name if not name.startswith("encodec") else {"preset": name, "weights": "user/name"}
    plan = check_recipe(compose({"tokenizers": {"part": slot}, "data": "corpus"}))
    codec = Assembly.outline(plan).tokenizers["part"]
    if name == "encodec-48khz":
        assert codec.decoding_steps() is None
        return
    after = sum(step.after for step in codec.decoding_steps() if isinstance(step, Local))
    assert after / codec.spec.rate + 0.5 + 1 / codec.spec.rate <= 1.5


def test_a_codec_that_normalizes_whole_clips_has_no_steps():
    shape = SEANetShape(width=4, strides=(4, 5), causal=False, normalization="time_group_norm")
    whole = codec(SEANet(network=shape)).eval()
    assert whole.encoding_steps() is None
    assert whole.decoding_steps() is None
    assert decode_long(whole, torch.zeros(1, 3, 30, dtype=torch.long), 0.1).shape == (1, 1, 600)
