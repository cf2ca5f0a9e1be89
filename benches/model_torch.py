#!/usr/bin/env python3
"""The scFoundation / xTrimoGene model in PyTorch, eager and on CPU: what cellql's speed is compared with.

    benches/model_torch.py --check tests/tiny-reference
    benches/model_torch.py --what peak
    benches/model_torch.py --what embed --method script --weights MODEL.safetensors --cells CELLS.npz --out E.npy
    benches/model_torch.py --what enhance --method batched --size 100M --random 400,2000 --cells-each 4

`--method script` is how the authors' script works: one cell at a time, fp32, expressed genes gathered, a padding mask
of all False, each nn.TransformerEncoderLayer called in a loop with PyTorch's own choice of path, result to numpy.
`--method batched` is the fastest way found to have PyTorch do the same work: cells sorted by length and run several at
a time. `--precision` (default bfloat16,autocast), `--layout` (default packed,padded) and `--batch` say what may be
tried: all combinations run once on a sample of the cells, the fastest is then timed on all. Name one of each to time
just that one; only then is peak_rss_mb its own.

MODEL is a model file of cellql: safetensors whose header holds config and vocabulary; `--size` draws random weights
instead. CELLS holds the tokens of each cell as the encoder reads them, ascending in position, T and S last:
`starts` [cells+1] int64, `positions` int32, `values` float32. Each run prints one JSON object to stdout. `--check`
compares with outputs of the authors' code and exits 1 where one differs by 1e-4 or more.
"""

import argparse
import contextlib
import copy
import csv
import json
import math
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

BF16 = torch.bfloat16
SIZES = {  # encoder dim, depth, heads; decoder dim, depth, heads, dim_head
    "3M": (128, 4, 8, 128, 2, 8, 16),
    "10M": (256, 4, 8, 256, 2, 8, 32),
    "100M": (768, 12, 12, 512, 6, 8, 64),
}


class ValueEmbedding(nn.Module):
    """A soft look-up: an expression value becomes a mixture of the rows of `emb`."""

    def __init__(self, config):
        super().__init__()
        bins, dim = config["bin_num"], config["encoder"]["hidden_dim"]
        self.alpha, self.mask_id, self.pad_id = config["bin_alpha"], config["mask_token_id"], config["pad_token_id"]
        self.mlp, self.mlp2 = nn.Linear(1, bins), nn.Linear(bins, bins)
        self.emb, self.emb_mask, self.emb_pad = nn.Embedding(bins, dim), nn.Embedding(1, dim), nn.Embedding(1, dim)

    def forward(self, values):
        hidden = F.leaky_relu(self.mlp(values[..., None].to(self.mlp.weight.dtype)), 0.1)
        out = torch.softmax(self.alpha * hidden + self.mlp2(hidden), -1).to(hidden.dtype) @ self.emb.weight
        out[values == self.mask_id] = self.emb_mask.weight.to(out.dtype)
        out[values == self.pad_id] = self.emb_pad.weight.to(out.dtype)
        return out


class Encoder(nn.Module):
    def __init__(self, hidden_dim, depth, heads, **_):
        super().__init__()
        layer = dict(dim_feedforward=4 * hidden_dim, batch_first=True)
        self.transformer_encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(hidden_dim, heads, **layer) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, x, padding):
        """Cells side by side, [cells, longest, dim]; `padding` is True where a shorter one has ended."""
        for layer in self.transformer_encoder:
            x = layer(x, src_key_padding_mask=padding)
        return self.norm(x)

    def packed(self, x, lengths):
        """Cells end to end, [tokens, dim]: one matrix product for all of them, attention cell by cell, no padding."""
        for layer in self.transformer_encoder:
            attention = layer.self_attn
            qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
            mixed = []
            for one in qkv.split(lengths):
                q, k, v = one.view(1, len(one), 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
                mixed.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(one), -1))
            x = layer.norm1(x + attention.out_proj(torch.cat(mixed)))
            x = layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))
        return self.norm(x)


class LinearAttention(nn.Module):
    """FAVOR+: softmax attention through positive random features, so that cost grows with length, not its square."""

    def __init__(self, dim, heads, dim_head):
        super().__init__()
        self.heads, self.dim_head, inner = heads, dim_head, heads * dim_head
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner) for _ in range(3))
        self.to_out = nn.Linear(inner, dim)
        self.register_buffer("projection_matrix", torch.randn(features(dim_head), dim_head))

    def phi(self, x, over):
        """Features of queries or keys. `over`: the dimensions that share one maximum."""
        y = (x * self.dim_head**-0.25) @ self.projection_matrix.T
        half_norm = x.square().sum(-1, keepdim=True) * (self.dim_head**-0.5 / 2)
        return len(self.projection_matrix) ** -0.5 * (torch.exp(y - half_norm - y.amax(over, keepdim=True)) + 1e-4)

    def forward(self, x):
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        # One maximum per cell for keys. The authors' spans the batch, which is one cell in their script.
        q, k = self.phi(q, (-1,)), self.phi(k, (1, 2, 3))
        out = (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2).unsqueeze(-1))
        return self.to_out(out.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.w2(F.gelu(self.w1(x)))


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return x + self.fn(self.norm(x))


class Decoder(nn.Module):
    def __init__(self, hidden_dim, depth, heads, dim_head, **_):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                PreNorm(hidden_dim, LinearAttention(hidden_dim, heads, dim_head)),
                PreNorm(hidden_dim, FeedForward(hidden_dim)),
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.genes = config, config["seq_len"] - 2
        dim, decoder_dim = config["encoder"]["hidden_dim"], config["decoder"]["hidden_dim"]
        self.token_emb = ValueEmbedding(config)
        self.pos_emb = nn.Embedding(config["seq_len"] + 1, dim)
        self.encoder, self.decoder = Encoder(**config["encoder"]), Decoder(**config["decoder"])
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.norm, self.to_final = nn.LayerNorm(decoder_dim), nn.Linear(decoder_dim, 1)

    def encode_one(self, dense):
        """Tokens of one cell, [1, tokens, dim], from its values at all positions."""
        positions = dense.nonzero()[:, 0]
        values = dense[positions][None]
        x = self.token_emb(values) + self.pos_emb(positions[None])
        return self.encoder(x, torch.zeros_like(values, dtype=torch.bool))

    def encode(self, cells, layout):
        """Tokens of several cells, end to end; and how many each has."""
        lengths = [len(positions) for positions, _ in cells]
        if layout == "packed":
            positions, values = (torch.cat(part) for part in zip(*cells))
            return self.encoder.packed(self.token_emb(values) + self.pos_emb(positions), lengths), lengths
        fill = (self.config["seq_len"], self.config["pad_token_id"])
        positions, values = (nn.utils.rnn.pad_sequence(part, True, value) for part, value in zip(zip(*cells), fill))
        padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
        return self.encoder(self.token_emb(values) + self.pos_emb(positions), padding)[~padding], lengths

    def decode(self, dense, encoded):
        """Gene context embeddings, [cells, genes, decoder dim]; `encoded` are the cells' tokens end to end."""
        x = self.token_emb(dense)
        x[dense > 0] = encoded.to(x.dtype)
        x = self.decoder_embed(x + self.pos_emb.weight[:-1])
        return self.norm(self.decoder(x))[:, :-2]

    def script(self, what, cells):
        """The authors' way. Cells are rows of values at all positions, as their script has them."""
        for row in cells:
            encoded = self.encode_one(row)
            if what == "embed":
                yield pool_all(encoded[0]).numpy()
            else:
                yield self.to_final(self.decode(row[None], encoded[0]))[0, :, 0].numpy()

    def batched(self, what, cells, layout, batch):
        """Results in the order of `cells`, computed `batch` at a time from the longest cell to the shortest."""
        order, out = sorted(range(len(cells)), key=lambda i: -len(cells[i][0])), [None] * len(cells)
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            encoded, lengths = self.encode([cells[i] for i in chosen], layout)
            if what == "embed":
                results = torch.stack([pool_all(one) for one in encoded.split(lengths)])
            else:
                rows = torch.stack([dense(cells[i], self.genes) for i in chosen])
                results = self.to_final(self.decode(rows, encoded))[..., 0]
            for i, result in zip(chosen, results.float().numpy()):
                out[i] = result
        return out


def pool_all(tokens):
    """S, T, then maximum and mean over genes."""
    genes = tokens[:-2]
    return torch.cat([tokens[-1], tokens[-2], genes.amax(0), genes.mean(0)])


def dense(cell, genes):
    return torch.zeros(genes + 2).index_put_((cell[0],), cell[1])


def features(dim_head):
    return int(dim_head * math.log(dim_head))


def gflop(config, what, lengths):
    """Work by shapes: 2·in·out per token of a linear layer; softmax attention 4·K²·dim per layer and cell of K tokens;
    FAVOR+ 2·inner·features per position for each of φ(q), φ(k), φ(k)ᵀv and φ(q)·that, and 2·heads·features for the
    denominator. Norms, activations and softmax are not counted."""
    bins, dim, depth = config["bin_num"], config["encoder"]["hidden_dim"], config["encoder"]["depth"]
    value = 2 * (bins + bins * bins + bins * dim)
    layer = 2 * (3 * dim * dim + dim * dim + 2 * 4 * dim * dim)
    total = sum(k * (value + depth * layer) + depth * 4 * k * k * dim for k in lengths)
    if what == "enhance":
        width, heads, head = (config["decoder"][name] for name in ("hidden_dim", "heads", "dim_head"))
        inner, rank = heads * head, features(head)
        layer = 2 * (4 * width * inner + 2 * 4 * width * width) + 2 * (4 * inner * rank + heads * rank)
        position = value + 2 * dim * width + config["decoder"]["depth"] * layer + 2 * width
        total += len(lengths) * config["seq_len"] * position
    return total / 1e9


def build(config, tensors=None):
    """A model in evaluation mode, with the given weights or random ones."""
    if tensors is None:
        return Model(config).eval()
    names = (("decoder.performer.net.", "decoder."), (".fast_attention.", "."), (".1.fn.fn.", ".1.fn."))
    weights = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        for theirs, ours in names:
            name = name.replace(theirs, ours)
        if tensor.is_floating_point():  # the rest is a counter of the training run
            weights[name] = tensor
    with torch.device("meta"):
        model = Model(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_model(args):
    if args.weights:
        with safe_open(args.weights, "pt") as file:
            config = json.loads(file.metadata()["cellql"])["config"]
        return build(config, load_file(args.weights))
    torch.manual_seed(1)
    e, d = SIZES[args.size][:3], SIZES[args.size][3:]
    return build(
        {
            "seq_len": args.genes + 2,
            "bin_alpha": 1.0,
            "bin_num": 100,
            "pad_token_id": 103,
            "mask_token_id": 102,
            "encoder": dict(zip(("hidden_dim", "depth", "heads"), e)),
            "decoder": dict(zip(("hidden_dim", "depth", "heads", "dim_head"), d)),
        }
    )


def load_cells(args, genes):
    """Positions and values of each cell's tokens."""
    if args.cells:
        with np.load(args.cells) as file:
            at = file["starts"][1:-1]
            cells = list(zip(np.split(file["positions"], at), np.split(file["values"], at)))
    else:
        rng, cells = np.random.default_rng(1), []
        for tokens in [int(k) for k in args.random.split(",") for _ in range(args.cells_each)]:
            chosen = np.sort(rng.choice(genes, tokens - 2, replace=False))
            values = np.r_[rng.uniform(0.5, 5, tokens - 2), 4, 3.5]
            cells.append((np.r_[chosen, genes, genes + 1], values))
    for i, (positions, values) in enumerate(cells):
        if list(positions[-2:]) != [genes, genes + 1] or len(positions) < 3 or not (values > 0).all():
            sys.exit(f"cell {i}: needs a gene, then T and S as its last tokens, and values above 0")
    return [(torch.tensor(p, dtype=torch.int64), torch.tensor(v, dtype=torch.float32)) for p, v in cells]


def timed(run):
    start = time.perf_counter()
    out = list(run())
    return time.perf_counter() - start, out


def runner(model, what, cells, precision, layout, batch):
    """The batched way in one precision, as a function without arguments."""

    def run():
        with torch.autocast("cpu", BF16) if precision == "autocast" else contextlib.nullcontext():
            return model.batched(what, cells, layout, batch)

    return run


def fastest(model, what, cells, args):
    """Model and form (precision, layout, batch) that are fastest on a sample over the range of lengths."""
    by_length = sorted(cells, key=lambda cell: len(cell[0]))
    batches = [int(b) for b in (args.batch or ("1,4,16" if what == "embed" else "1,4")).split(",")]
    sample = by_length[:: math.ceil(len(cells) / max(batches))]
    precisions, layouts = args.precision.split(","), args.layout.split(",")
    forms = [(p, layout, b) for p in precisions for layout in layouts for b in batches]
    keep = model if len(precisions) == 1 else copy.deepcopy(model)
    models = {p: keep.to(BF16) if p == "bfloat16" else model for p in precisions}
    if len(forms) == 1:
        return models[precisions[0]], forms[0], {}
    tried = {}
    for form in forms:
        runner(models[form[0]], what, by_length[:1], *form)()
        tried[form] = timed(runner(models[form[0]], what, sample, *form))[0] / len(sample)
    best = min(tried, key=tried.get)
    return models[best[0]], best, {" ".join(map(str, form)): round(s, 4) for form, s in tried.items()}


def measure(args):
    model = load_model(args)
    cells = load_cells(args, model.genes)
    what, extra = args.what, {}
    if args.method == "script":
        rows = [dense(cell, model.genes) for cell in cells]
        list(model.script(what, rows[:1]))
        run = lambda: model.script(what, rows)  # noqa: E731
    else:
        model, form, tried = fastest(model, what, cells, args)
        extra = dict(zip(("precision", "layout", "batch"), form)) | ({"tried_s_per_cell": tried} if tried else {})
        runner(model, what, cells[:1], *form)()
        run = runner(model, what, cells, *form)
    seconds, out = zip(*(timed(run) for _ in range(args.repeat)))
    if args.out:
        np.save(args.out, np.stack(out[0]))
    lengths, middle = [len(positions) for positions, _ in cells], statistics.median(seconds)
    work = gflop(model.config, what, lengths)
    print(
        json.dumps(
            {
                "what": what,
                "method": args.method,
                "cells": len(cells),
                "tokens": sum(lengths),
                "seconds": middle,
                "seconds_min": min(seconds),
                "seconds_max": max(seconds),
                "cells_per_s": len(cells) / middle,
                "gflop": work,
                "gflops": work / middle,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                **extra,
            }
        ),
        flush=True,
    )


def peak(args):
    """What torch.mm reaches at best, in GFLOP/s."""
    for dtype in (torch.float32, BF16):
        for m, k, n, repeats in ((2048, 2048, 2048, 10), (4096, 4096, 4096, 3), (2048, 768, 3072, 20)):
            a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
            torch.mm(a, b)
            best = min(timed(lambda: torch.mm(a, b)[:1])[0] for _ in range(repeats))
            print(
                json.dumps(
                    {
                        "what": "peak",
                        "dtype": str(dtype)[6:],
                        "m": m,
                        "k": k,
                        "n": n,
                        "gflops": 2e-9 * m * k * n / best,
                        "threads": torch.get_num_threads(),
                    }
                ),
                flush=True,
            )


def check(folder):
    """Largest differences from outputs of the authors' code: the script, and the batched forms in fp32 and bf16."""
    expected, worst = load_file(folder / "expected.safetensors"), 0
    with open(folder / "counts.csv", newline="") as file:
        counts = np.array([row[1:] for row in list(csv.reader(file))[1:]], float)
    total = counts.sum(1, keepdims=True)
    values = np.log1p(counts / total * 1e4)
    for name in ("cell.all.t4.F", "cell.max.f1.F", "gene.f1.F", "enhance.t4.F"):
        key, depth = ("cell" if name.startswith("cell") else "gene"), (4 if ".t4." in name else np.log10(total))
        if not (folder / f"{key}.config.json").exists():
            print(f"{name:15} skipped: {folder} has no {key}.config.json and {key}.weights.safetensors")
            continue
        full = np.hstack([values, np.broadcast_to(depth, total.shape), np.log10(total)]).astype(np.float32)
        rows = list(torch.from_numpy(full))
        cells = [(row.nonzero()[:, 0], row[row > 0]) for row in rows]
        config = json.loads((folder / f"{key}.config.json").read_text())
        model = build(config, load_file(folder / f"{key}.weights.safetensors"))

        def difference(got):
            return float((torch.as_tensor(np.stack(got)) - expected[name]).abs().max())

        what = {"cell.all.t4.F": "embed", "enhance.t4.F": "enhance"}.get(name)
        if what is None:
            kind = (lambda row, x: x.amax(1)) if key == "cell" else (lambda row, x: model.decode(row[None], x[0]))
            line = {"script": difference([kind(row, model.encode_one(row))[0] for row in rows])}
        else:
            line = {"script": difference(list(model.script(what, rows)))}
            for layout in ("packed", "padded"):
                line[layout] = difference(model.batched(what, cells, layout, 4))
        worst = max(worst, *line.values())
        if what is not None:
            for precision in ("autocast", "bfloat16"):
                model = model.to(BF16) if precision == "bfloat16" else model
                line[precision] = difference(runner(model, what, cells, precision, "packed", 4)())
        print(f"{name:15}", "  ".join(f"{way} {value:.1e}" for way, value in line.items()))
    sys.exit(f"fp32 differs by {worst:.1e}" if not worst < 1e-4 else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", type=Path, metavar="FOLDER")
    parser.add_argument("--what", choices=("embed", "enhance", "peak"), default="embed")
    parser.add_argument("--method", choices=("script", "batched"), default="script")
    parser.add_argument("--weights", help="model file of cellql")
    parser.add_argument("--size", choices=SIZES, default="100M", help="random weights, without --weights")
    parser.add_argument("--genes", type=int, default=19264, help="vocabulary of random weights")
    parser.add_argument("--cells", help="npz of tokens")
    parser.add_argument("--random", default="400", help="tokens (T and S included) of random cells, without --cells")
    parser.add_argument("--cells-each", type=int, default=1)
    parser.add_argument("--precision", default="bfloat16,autocast", help="of bfloat16, autocast, float32")
    parser.add_argument("--layout", default="packed,padded")
    parser.add_argument("--batch", help="cells at a time (1,4,16; enhance 1,4: its memory grows with all positions)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", help="npy of the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        check(args.check) if args.check else peak(args) if args.what == "peak" else measure(args)


if __name__ == "__main__":
    main()
