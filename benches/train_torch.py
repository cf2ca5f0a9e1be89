#!/usr/bin/env python3
"""One training step of the scFoundation / xTrimoGene model in PyTorch: what cellql's training is compared with.

    train_torch.py --size 3M --batch 8 --steps 5 --warmup 2 --threads 2 --precision f32 --cells raw-Baron_human.h5ad
    train_torch.py --check --weights MODEL.safetensors --examples EXAMPLES.npz --out GRADIENTS.safetensors

Timed: forward, backward, gradient clipping to 1, AdamW, zero_grad(set_to_none), on one batch, step after step; the
median of `--steps` after `--warmup` steps; with `--device cuda` on a GPU, each step to its end. Examples of the
pretraining task and their index tensors are made before. Weights are random. Cells are the first `--batch` rows of a
permutation drawn from `--seed`. Columns are taken as positions of the vocabulary: those past `--genes` are dropped,
missing ones are zero, so the decoder has as many positions as ours.

The model is what a practised PyTorch user would write: nn.TransformerEncoderLayer in a loop (as nn.TransformerEncoder,
with the authors' names; no dropout, so flash attention runs), cells padded to the longest; FAVOR+ of all cells and
heads in one product; fused AdamW; bf16 is torch.autocast. Work that changes no result is left out: the decoder embeds
the value 0 once, not at each position, and the last norms and `to_final` see masked positions only. `--sparse` goes
further: the last decoder layer makes queries and feed-forward at masked positions only. Freed memory is kept; by
default (`--malloc default`) glibc hands large tensors back to the kernel, and their pages fault anew in each step.

`--check` writes a gradient per weight, under its name, and `loss` [1], the mean squared error over all masked
positions of the batch. EXAMPLES: `input`, `target` [cells, genes] float32, `masked`, `hidden` [cells, genes] uint8,
`target_depth`, `source_depth` [cells]. Sizes come from the weights, but the encoder's `--heads`; bin_alpha is 1.
`--precision f64` (for `--check`) computes in doubles; what is written is float32.
"""

import argparse
import ctypes
import json
import math
import resource
import statistics
import time
from collections import OrderedDict
from types import SimpleNamespace

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

# Encoder: dim, depth, heads. Decoder: dim, depth, heads, dim_head.
SIZES = {"3M": ((128, 4, 8), (128, 2, 8, 16)), "10M": ((256, 4, 8), (256, 2, 8, 32))}


class ValueEmbedding(nn.Module):
    """A soft look-up: an expression value becomes a mixture of the rows of `emb`."""

    def __init__(self, bins, dim):
        super().__init__()
        self.mlp, self.mlp2 = nn.Linear(1, bins), nn.Linear(bins, bins)
        self.emb, self.emb_mask, self.emb_pad = nn.Embedding(bins, dim), nn.Embedding(1, dim), nn.Embedding(1, dim)

    def forward(self, values):
        hidden = F.leaky_relu(self.mlp(values[..., None]), 0.1)
        return torch.softmax(hidden + self.mlp2(hidden), -1) @ self.emb.weight


class Encoder(nn.Module):
    def __init__(self, dim, depth, heads):
        super().__init__()
        layers = (nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, batch_first=True) for _ in range(depth))
        self.transformer_encoder, self.norm = nn.ModuleList(layers), nn.LayerNorm(dim)

    def forward(self, x, padding):
        for layer in self.transformer_encoder:
            x = layer(x, src_key_padding_mask=padding)
        return self.norm(x)


class LinearAttention(nn.Module):
    """FAVOR+: softmax attention through positive random features."""

    def __init__(self, dim, heads, dim_head):
        super().__init__()
        self.heads, self.dim_head, inner = heads, dim_head, heads * dim_head
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner) for _ in range(3))
        self.to_out, self.fast_attention = nn.Linear(inner, dim), nn.Module()
        rows = torch.linalg.qr(torch.randn(8, dim_head, dim_head))[0].flatten(0, 1)
        matrix = (rows * torch.randn(rows.shape).norm(dim=1, keepdim=True))[: int(dim_head * math.log(dim_head))]
        self.fast_attention.register_buffer("projection_matrix", matrix)

    def phi(self, x, over):
        """Features, but for a factor that the quotient cancels. `over`: the dimensions that share one maximum."""
        y = F.linear(x, self.fast_attention.projection_matrix * self.dim_head**-0.25)
        half_norm = x.square().sum(-1, keepdim=True) * (self.dim_head**-0.5 / 2)
        return y.sub_(half_norm + y.detach().amax(over, keepdim=True)).exp_() + 1e-4

    def forward(self, x, at=None):
        q, k, v = self.to_q(x if at is None else take(x, at)), self.to_k(x), self.to_v(x)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        q, k = self.phi(q, -1), self.phi(k, (1, 2, 3))
        out = q @ (k.transpose(-1, -2) @ F.pad(v, (0, 1), value=1.0))  # the column of ones makes the denominator
        return self.to_out((out[..., :-1] / out[..., -1:]).transpose(1, 2).flatten(-2))


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x, at=None):
        h = self.norm(x)
        return x + self.fn(h) if at is None else take(x, at) + self.fn(h, at)


class Decoder(nn.Module):
    def __init__(self, dim, depth, heads, dim_head):
        super().__init__()
        layers, named = nn.ModuleList(), lambda **parts: nn.Sequential(OrderedDict(parts))
        for _ in range(depth):
            feed = named(fn=named(w1=nn.Linear(dim, 4 * dim), gelu=nn.GELU(), w2=nn.Linear(4 * dim, dim)))
            attend = LinearAttention(dim, heads, dim_head)
            layers.append(nn.ModuleList([PreNorm(dim, attend), PreNorm(dim, feed)]))
        self.performer, self.norm = named(net=named(layers=layers)), nn.LayerNorm(dim)

    def forward(self, x, at, sparse):
        """Of the positions `at` of each cell."""
        *layers, (attend, feed) = self.performer.net.layers
        for before, after in layers:
            x = after(before(x))
        return self.norm(feed(attend(x, at)) if sparse else take(feed(attend(x)), at))


class Model(nn.Module):
    def __init__(self, genes, bins, encoder, decoder, sparse):
        super().__init__()
        dim, width = encoder[0], decoder[0]
        self.token_emb, self.pos_emb, self.sparse = ValueEmbedding(bins, dim), nn.Embedding(genes + 3, dim), sparse
        self.encoder, self.decoder = Encoder(*encoder), Decoder(*decoder)
        self.decoder_embed, self.norm, self.to_final = nn.Linear(dim, width), nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, batch):
        """Mean squared error over masked positions."""
        encoded = self.encoder(self.token_emb(batch.values) + self.pos_emb(batch.positions), batch.padding)
        # Every position of the decoder is one of these rows: a zero, the mask token, or a token of the encoder. They
        # are widened from bf16, since the gradient of the first sums a hundred thousand positions.
        zero = self.token_emb(batch.values.new_zeros(1))
        rows = torch.cat([zero, self.token_emb.emb_mask.weight.to(zero.dtype), encoded.flatten(0, 1).to(zero.dtype)])
        x = F.embedding(batch.source, rows.to(self.pos_emb.weight.dtype)) + self.pos_emb.weight[:-1]
        x = self.norm(self.decoder(self.decoder_embed(x), batch.at, self.sparse))
        error = self.to_final(x)[..., 0].to(batch.target.dtype) - batch.target
        return (error.square() * batch.counted).sum() / batch.counted.sum()


def take(x, at):
    """Rows `at` [cells, some] of x [cells, positions, dim], where `at` counts through all cells."""
    return F.embedding(at, x.flatten(0, 1))


def example(counts, rng):
    """The pretraining task: input, target, masked, hidden, and the depths T and S."""
    total, seen = counts.sum(), counts
    if total >= 1000 and rng.random() < 0.5:
        seen = rng.binomial(counts, rng.beta(2, 2))
    values, target = (np.log1p(x * (1e4 / x.sum())).astype(np.float32) for x in (seen, counts))
    masked = rng.random(len(values)) < np.where(values > 0, 0.3, 0.03)
    what = rng.random(len(values))
    hidden, drawn = masked & (what < 0.8), masked & (what >= 0.8) & (what < 0.9)
    values[drawn] = rng.choice(values[values > 0], drawn.sum())
    return values, target, masked, hidden, np.log10(total), np.log10(seen.sum())


def read(path, genes, cells, rng):
    """Counts [cells, genes] of random rows of an AnnData file whose X is CSR."""
    with h5py.File(path) as file:
        starts, counts = file["X/indptr"][:], np.zeros((cells, genes), np.int64)
        for row, cell in enumerate(rng.permutation(len(starts) - 1)[:cells]):
            part = slice(starts[cell], starts[cell + 1])
            columns, values = file["X/indices"][part], file["X/data"][part]
            counts[row, columns[columns < genes]] = values[columns < genes]
    return counts


def collate(dtype, *arrays):
    """What the model reads, from what examples are made of: arrays [cells, genes] and depths [cells]."""
    values, target, masked, hidden, *depths = (torch.as_tensor(np.asarray(array)) for array in arrays)
    cells, genes = values.shape
    # Positions of genes, T and S; and one that stands for padding.
    values = torch.column_stack([values, *depths, torch.zeros(cells)]).to(dtype)
    target, masked, hidden = F.pad(target, (0, 3)).to(dtype), F.pad(masked, (0, 3)).bool(), F.pad(hidden, (0, 3)).bool()

    positions, at = (
        nn.utils.rnn.pad_sequence([row.nonzero()[:, 0] for row in flags], True, fill)
        for flags, fill in (((values > 0) & ~hidden, genes + 2), (masked, genes))
    )
    rows = torch.arange(2, 2 + positions.numel()).view_as(positions)
    return SimpleNamespace(
        values=values.gather(1, positions),
        positions=positions,
        padding=positions == genes + 2,
        source=hidden.long().scatter(1, positions, rows)[:, :-1].contiguous(),
        target=target.gather(1, at),
        counted=at < genes,
        at=at + torch.arange(cells)[:, None] * (genes + 2),
    )


def check(args):
    dtype = torch.float64 if args.precision == "f64" else torch.float32
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(args.weights).items()
        if tensor.is_floating_point()
    }
    depth, layers = (sum(name.endswith(end) for name in tensors) for end in ("in_proj_weight", "to_q.weight"))
    first, (bins, dim) = "decoder.performer.net.layers.0.0.fn.", tensors["token_emb.emb.weight"].shape
    (inner, width), dim_head = (
        tensors[first + "to_q.weight"].shape,
        tensors[first + "fast_attention.projection_matrix"].shape[1],
    )
    encoder, decoder = (dim, depth, args.heads), (width, layers, inner // dim_head, dim_head)
    model = Model(len(tensors["pos_emb.weight"]) - 3, bins, encoder, decoder, args.sparse)
    model.load_state_dict(tensors)
    model.to(dtype)
    with np.load(args.examples) as file:
        names = "input", "target", "masked", "hidden", "target_depth", "source_depth"
        batch = collate(dtype, *(file[name] for name in names))
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
        loss = model(batch)
    loss.backward()
    out = {name: (torch.zeros_like(p) if p.grad is None else p.grad).float() for name, p in model.named_parameters()}
    save_file(out | {"loss": loss.detach().reshape(1).float()}, args.out)
    norm = math.sqrt(sum(g.double().square().sum() for g in out.values()))
    print(json.dumps({"loss": loss.item(), "gradient_norm": norm}))


def measure(args):
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    examples = [example(counts, rng) for counts in read(args.cells, args.genes, args.batch, rng)]
    batch = collate(torch.float32, *(np.stack(part) for part in zip(*examples)))
    batch = SimpleNamespace(**{name: part.to(args.device) for name, part in vars(batch).items()})
    model = Model(args.genes, 100, *SIZES[args.size], args.sparse).to(args.device)
    weights = list(model.parameters())
    try:
        optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.0, fused=True)
    except RuntimeError:  # PyTorch before 2.4
        optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.0, foreach=True)
    run, seconds, losses = torch.compile(model) if args.compile else model, [], []
    for _ in range(args.warmup + args.steps):
        start = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = run(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    names = "size", "batch", "precision", "sparse", "compile", "malloc", "threads", "device"
    seconds = seconds[args.warmup :]
    print(
        json.dumps(
            {name: getattr(args, name) for name in names}
            | {
                "seconds_per_step": statistics.median(seconds),
                "all": seconds,
                "loss": [losses[0], losses[-1]],
                "cells_per_second": args.batch / statistics.median(seconds),
                "tokens": int((~batch.padding).sum()),
                "longest": batch.padding.shape[1],
                "masked": int(batch.counted.sum()),
                "torch": torch.__version__,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, numbers = parser.add_argument, dict(batch=8, steps=5, warmup=2, threads=2, genes=19264, seed=0, heads=8)
    for name, value in numbers.items():
        add(f"--{name}", type=int, default=value)
    for name in ("cells", "weights", "examples", "out"):
        add(f"--{name}", metavar="FILE")
    for name in ("sparse", "compile", "check"):
        add(f"--{name}", action="store_true")
    add("--size", choices=SIZES, default="3M")
    add("--precision", choices=("f32", "bf16", "f64"), default="f32")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--malloc", choices=("keep", "default"), default="keep")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.malloc == "keep":
        for setting, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            ctypes.CDLL("libc.so.6").mallopt(setting, value)
    check(args) if args.check else measure(args)


if __name__ == "__main__":
    main()
