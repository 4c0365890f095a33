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
from collections.abc import Callable, Iterable
from functools import partial
from tempfile import TemporaryDirectory

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does: threads that wait yield early

import torch
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from measuring import add_save, in_turns, median_ratio, save
from torch import Tensor, nn
from transformers import EncodecConfig
from transformers import EncodecModel as TransformersModel

from partita.recipe.compose import compose
from partita.recipe.plan import check_recipe
from partita.system.system import System
from partita.tokenizers.adversarial import Losses
from partita.tokenizers.autoencoders.seanet import SEANet
from partita.tokenizers.base import Tokenizer
from partita.tokenizers.bottlenecks.rvq import RVQ
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
    """The modules of the encodec package, with the weights of transformers' model."""

    def __init__(self, config: EncodecConfig, state: dict[str, Tensor]) -> None:
        super().__init__()
        network = {
            "n_filters": config.num_filters,
            "ratios": config.upsampling_ratios,
            "causal": config.use_causal_conv,
            "true_skip": not config.use_conv_shortcut,
            "norm": "weight_norm",
        }
        self.encoder, self.decoder = SEANetEncoder(**network), SEANetDecoder(**network)
        self.quantizer = ResidualVectorQuantizer(
            dimension=config.hidden_size, n_q=config.num_quantizers, bins=config.codebook_size, kmeans_init=False
        )
        # Both list their weights in the same order.
        own, theirs = (sorted_by_place(names) for names in (self.state_dict(), state))
        self.load_state_dict({mine: state[other] for mine, other in zip(own, theirs, strict=True)})
        self.eval()

    def encode(self, audio: Tensor) -> Tensor:
        return self.quantizer.vq.encode(self.encoder(audio)).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.quantizer.decode(codes.transpose(0, 1)))


def sorted_by_place(names: Iterable[str]) -> list[str]:
    """Names of weights in the order of network, layer, block and kind, whatever a library calls them."""

    def place(name: str) -> tuple[object, ...]:
        kind = name.rpartition(".")[2]
        kind = {"weight_g": "original0", "weight_v": "original1"}.get(kind, kind)
        numbers = [int(part) for part in name.split(".") if part.isdecimal()]
        return name.split(".")[0], numbers, "shortcut" in name, kind

    return sorted(names, key=place)


def models(name: str) -> tuple[Tokenizer, Package, TransformersModel]:
    """The same random weights in three libraries. Entries lie among the latents, so that all of them are used."""
    theirs = TransformersModel(EncodecConfig(**CONFIGS[name])).eval()
    with torch.no_grad():
        residual = theirs.encoder(torch.randn(1, 1, theirs.config.sampling_rate) * 0.2)[0]
        for layer in theirs.quantizer.layers:
            layer.codebook.embed.normal_().mul_(residual.std(1)).add_(residual.mean(1))
    slot = {"preset": f"encodec-{name}", "weights": None, "num_codebooks": None}
    ours = System(check_recipe(compose({"tokenizers": {"codec": slot}, "data": "corpus"}))).tokenizers["codec"].eval()
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours.load_weights(folder)
    return ours, Package(theirs.config, theirs.state_dict()), theirs


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
