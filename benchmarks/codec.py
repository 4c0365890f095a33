"""Seconds in which EnCodec encodes and decodes, here, in encodec and in transformers, with the same weights.

    python benchmarks/codec.py --seconds 10

All contenders run in one process, in turns, so that their ratios mean something on a busy machine. The weights are
random. The package has no 32 kHz model; its modules in that model's sizes take the place. A codec of our own, in
SoundStream's sizes, has no reference.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does: threads that wait yield early

import torch
from encodec.modules import SEANetDecoder, SEANetEncoder
from measuring import add_save, in_turns, median_ratio, save
from torch import Tensor, nn
from transformers import EncodecConfig
from transformers import EncodecModel as TransformersModel

from partita.tokenizers.adversarial import Losses
from partita.tokenizers.autoencoders.seanet import SEANet
from partita.tokenizers.base import Tokenizer
from partita.tokenizers.bottlenecks.rvq import RVQ
from partita.tokenizers.encodec import _TRAINING_STATE, EnCodec, _fold, _own_name
from partita.tokenizers.neural_codec import NeuralCodec

CONFIGS = {
    "24khz": {"target_bandwidths": [24.0]},
    "32khz": {
        "upsampling_ratios": [8, 5, 4, 4],
        "num_filters": 64,
        "codebook_size": 2048,
        "sampling_rate": 32000,
        "use_causal_conv": False,
        "use_conv_shortcut": False,
        "target_bandwidths": [2.2],
    },
}


class Package(nn.Module):
    """The modules of the encodec package, with its weight normalization."""

    def __init__(self, ours: EnCodec) -> None:
        super().__init__()
        network = {**ours.model.network, "norm": "weight_norm"}
        self.encoder, self.decoder = SEANetEncoder(**network), SEANetDecoder(**network)
        state = {}
        for name, tensor in ours.state_dict().items():
            state[name] = tensor
            if name.endswith(("conv.weight", "convtr.weight")):
                state[f"{name}_v"] = state.pop(name)
                state[f"{name}_g"] = tensor.flatten(1).norm(dim=1)[:, None, None]
        own = self.state_dict()
        self.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
        self.quantizer = ours.quantizer
        self.eval()

    def encode(self, audio: Tensor) -> Tensor:
        return self.quantizer.vq.encode(self.encoder(audio)).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.decode(codes.transpose(0, 1)))


def models(name: str) -> tuple[EnCodec, Package, TransformersModel]:
    """The same random weights in three libraries. Entries lie among the latents, so that all of them are used."""
    theirs = TransformersModel(EncodecConfig(**CONFIGS[name])).eval()
    with torch.no_grad():
        residual = theirs.encoder(torch.randn(1, 1, theirs.config.sampling_rate) * 0.2)[0]
        for layer in theirs.quantizer.layers:
            layer.codebook.embed.normal_().mul_(residual.std(1)).add_(residual.mean(1))
    ours = EnCodec(model=name)
    own = ours.exported_state()
    state = {_own_name(key, own): tensor for key, tensor in _fold(theirs.state_dict()).items()}
    ours.load_exported_state({k: v for k, v in state.items() if not k.endswith(_TRAINING_STATE)}, "the reference")
    return ours, Package(ours), theirs


def soundstream() -> Tokenizer:
    codec = NeuralCodec(
        autoencoder=SEANet(),
        bottleneck=RVQ(num_codebooks=8, cardinality=1024),
        losses=Losses(adversarial=0, feature_matching=0),
    )
    return codec.eval()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    add_save(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []

    def compare(model: str, work: str, contenders: dict[str, Callable[[], Tensor]]) -> None:
        made = {name: run() for name, run in contenders.items()}
        for name, other in made.items():
            if name == "partita":
                continue
            if work == "encode":
                share = float((other != made["partita"]).float().mean())
                print(f"{model}: {share:.2e} of the codes of {name} are others, where two entries are equally near")
            else:
                print(f"{model}: audio of {name} differs by {float((other - made['partita']).abs().max()):.1e}")
        times = in_turns(contenders, options.runs)
        row = {"model": model, "work": work, "seconds": options.seconds}
        row |= {name: statistics.median(values) for name, values in times.items()}
        others = [name for name in times if name != "partita"]
        if others:
            best = min(others, key=lambda name: statistics.median(times[name]))
            row |= {"best_reference": best, "ratio": median_ratio(times[best], times["partita"])}
        rows.append(row)
        print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)

    for name in CONFIGS:
        ours, package, theirs = (model.to(options.device) for model in models(name))
        audio = torch.randn(1, 1, int(options.seconds * ours.spec.sample_rate), device=options.device) * 0.1
        codes = ours.encode(audio)
        encoders = {
            "partita": partial(ours.encode, audio),
            "encodec": partial(package.encode, audio),
            "transformers": partial(lambda model, audio: model.encode(audio).audio_codes[0], theirs, audio),
        }
        decoders = {
            "partita": partial(ours.decode, codes),
            "encodec": partial(package.decode, codes),
            "transformers": partial(lambda model, codes: model.decode(codes[None], [None])[0], theirs, codes),
        }
        compare(name, "encode", encoders)
        compare(name, "decode", decoders)
    codec = soundstream().to(options.device)
    audio = torch.randn(1, 1, int(options.seconds * codec.spec.sample_rate), device=options.device) * 0.1
    codes = codec.encode(audio)
    compare("soundstream-24khz", "encode", {"partita": lambda: codec.encode(audio)})
    compare("soundstream-24khz", "decode", {"partita": lambda: codec.decode(codes)})
    if options.save:
        save("codec", rows, seconds=options.seconds)


if __name__ == "__main__":
    main()
