"""The weights of transformers' models under the names in audiocraft's exports."""

import torch


def audiocraft_names(state):
    """The weights of transformers' decoder under audiocraft's names, with queries, keys and values in one tensor."""
    renamed, joined = {}, {}
    pairs = {
        "model.decoder.embed_tokens.": "emb.",
        "model.decoder.layer_norm.": "out_norm.",
        "model.decoder.layers.": "transformer.layers.",
        "lm_heads.": "linears.",
        "self_attn_layer_norm": "norm1",
        "encoder_attn_layer_norm": "norm_cross",
        "final_layer_norm": "norm2",
        "encoder_attn.": "cross_attention.",
        ".fc1.": ".linear1.",
        ".fc2.": ".linear2.",
        "audio_enc_to_dec_proj.": "condition_provider.conditioners.self_wav.output_proj.",
        "enc_to_dec_proj.": "condition_provider.conditioners.description.output_proj.",
    }
    for name, tensor in state.items():
        name = name.removeprefix("decoder.")
        for theirs, ours in pairs.items():
            name = name.replace(theirs, ours)
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            joined.setdefault(name[: -len("q_proj.weight")] + "in_proj_weight", {})[name[-len("q_proj.weight")]] = (
                tensor
            )
        else:
            renamed[name] = tensor
    return renamed | {name: torch.cat([three[k] for k in "qkv"]) for name, three in joined.items()}


def package_names(state):
    """The weights of transformers' EnCodec under the names of the encodec package, with its weight normalization."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("quantizer."):
            name = name.replace("quantizer.layers", "quantizer.vq.layers").replace(".codebook.", "._codebook.")
        else:
            number = int(name.split(".")[2])
            transposed = name.startswith("decoder.") and number in (3, 6, 9, 12) and "block" not in name
            kind = "convtr" if transposed else "conv"
            name = name.replace(".layers.", ".model.", 1)
            name = name.replace(".conv.", f".{kind}.{kind}.")
            name = name.replace("parametrizations.weight.original0", "weight_g")
            name = name.replace("parametrizations.weight.original1", "weight_v")
        renamed[name] = tensor
    return renamed
