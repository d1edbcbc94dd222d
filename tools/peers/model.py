#!/usr/bin/env python3
"""Training of the 340M model in PyTorch, with dense attention, beside moba-js, in one table.

    python3 tools/peers/model.py [--moba PATH] [--cases 8192x4 65536x1] [--recompute]

The model is that of moba-js's preset `340m` with dense attention in place of MoBA: layers alternate a sliding window with rotary
embedding (flex_attention) and dense causal attention without positions (cuDNN); SwiGLU, RMSNorm, tied embedding. It trains as PyTorch
models do: torch.compile, bfloat16 autocast over float32 parameters, clipped gradients, fused AdamW. moba-js runs by its own command
(`moba bench train`) on the same GPU, one after the other, whole steps on random tokens. Ratios are tokens a second, moba-js's divided by
PyTorch's.
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from attention import moba_command, parse_case, print_table, run_moba, tried

WARM_STEPS = 3  # after the first, which compiles
LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Config:
    """As moba-js's presets."""

    vocabulary: int = 32000
    hidden: int = 1024
    layers: int = 24
    heads: int = 16
    head_dim: int = 64
    mlp: int = 2816
    window: int = 256
    rope_base: float = 10000
    norm_epsilon: float = 1e-6


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden))
        self.epsilon = config.norm_epsilon

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon) * self.weight).to(x.dtype)


def rotations(config, tokens, device):
    """Cosines and sines, [tokens, d / 2]: channel c turns with channel c + d / 2."""
    half = torch.arange(config.head_dim // 2, device=device, dtype=torch.float64)
    angles = torch.arange(tokens, device=device)[:, None] * config.rope_base ** (-2 * half / config.head_dim)
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)


def window_attention(window, tokens, device):
    """Causal attention over the last `window` tokens, as a function of q, k, v."""
    if torch.device(device).type == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def visible(_batch, _head, q, k):
            return (q >= k) & (q - k < window)

        mask = create_block_mask(visible, None, None, tokens, tokens, device=device)
        return lambda q, k, v: flex_attention(q, k, v, block_mask=mask)
    at = torch.arange(tokens, device=device)
    distance = at[:, None] - at[None, :]
    mask = (distance >= 0) & (distance < window)
    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def dense_attention(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.windowed = index % 2 == 0
        width = config.heads * config.head_dim
        self.attention_norm, self.mlp_norm = RMSNorm(config), RMSNorm(config)
        self.qkv = nn.Linear(config.hidden, 3 * width, bias=False)
        self.out = nn.Linear(width, config.hidden, bias=False)
        self.gate_up = nn.Linear(config.hidden, 2 * config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, config.hidden, bias=False)

    def forward(self, x, turns, windowed):
        batch, tokens, _ = x.shape
        projected = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, self.head_dim)
        q, k, v = projected.transpose(1, 3).unbind(2)
        if self.windowed:
            attended = windowed(rotate(q, *turns), rotate(k, *turns), v)
        else:
            attended = dense_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        self.norm = RMSNorm(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deviation = 0.02 / math.sqrt(2 * config.layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, std=deviation)

    def forward(self, tokens, targets, turns, windowed):
        x = self.embedding(tokens)
        if torch.is_autocast_enabled():
            x = x.to(torch.get_autocast_gpu_dtype())
        for layer in self.layers:
            x = layer(x, turns, windowed)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def training_flop(config, parameters, context, batch):
    """As `moba bench train` counts: products, and attention forward and backward."""
    full = min(config.window, context)
    windowed = full * (full + 1) / 2 + (context - full) * full
    dense = context * (context + 1) / 2
    scores = batch * config.heads * ((config.layers + 1) // 2 * windowed + config.layers // 2 * dense)
    return 6 * parameters * batch * context + 7 * 2 * config.head_dim * scores


def optimizer_of(model):
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def peer_case(config, context, batch, steps, seed):
    """Seconds a step of PyTorch, and what goes with it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(seed)
    torch.cuda.reset_peak_memory_stats()
    model = Model(config).cuda()
    optimizer = optimizer_of(model)
    compiled = torch.compile(model)
    text = torch.randint(config.vocabulary, (batch, context + 1), device="cuda")
    turns = rotations(config, context, "cuda")
    windowed = window_attention(config.window, context, "cuda")
    torch.cuda.empty_cache()  # making the mask takes tokens² of temporary memory

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = compiled(text[:, :-1], text[:, 1:], turns, windowed)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        first = step().item()
        for _ in range(WARM_STEPS):
            step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            last = step()
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "milliseconds": 1000 * seconds,
        "tokensPerSecond": batch * context / seconds,
        "flop": training_flop(config, parameters, context, batch),
        "parameters": parameters,
        "loss": {"first": first, "last": last.item()},
        "peakBytes": torch.cuda.max_memory_allocated(),
    }


def moba_case(command, context, batch, options):
    """The case of `moba bench train`, and the device that it ran on."""
    arguments = [
        *("bench", "train", "--backend", "cuda", "--json", "--preset", "340m", "--compute", "bf16"),
        *("--context", str(context), "--batch", str(batch), "--steps", str(options.steps), "--seed", str(options.seed)),
        *(["--recompute"] if options.recompute else []),
    ]
    return run_moba(command, arguments)


def tried_peer(*arguments):
    """`peer_case`, or why it failed."""
    return tried(lambda: peer_case(*arguments))


def in_child(run, *arguments):
    """What `run` returns in a process of its own: all its memory on the GPU is free afterwards."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as child:
        return child.submit(run, *arguments).result()


def row_of(result):
    ours, peer = result["moba"], result["peer"]
    share = ours.get("shareOfPeak")
    peak = ours["flop"] / (share * ours["milliseconds"]) if share else None  # FLOP a millisecond
    peer_share = peer["flop"] / (peak * peer["milliseconds"]) if "flop" in peer and peak else None
    ratio = ours["tokensPerSecond"] / peer["tokensPerSecond"] if "flop" in peer and "flop" in ours else None

    def cell(figure, form, factor=1):
        return "-" if figure is None else form.format(factor * figure)

    return [
        str(result["context"]),
        str(result["batch"]),
        cell(ours.get("milliseconds"), "{:.1f}"),
        cell(ours.get("tokensPerSecond"), "{:.0f}"),
        cell(share, "{:.1f} %", 100),
        cell(ours.get("hostMilliseconds"), "{:.2f}"),
        cell(peer.get("milliseconds"), "{:.1f}"),
        cell(peer.get("tokensPerSecond"), "{:.0f}"),
        cell(peer_share, "{:.1f} %", 100),
        cell(ratio, "{:.2f}"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moba", help="the moba command: a script, or apps/cli/dist/main.js")
    parser.add_argument("--cases", nargs="*", default=["8192x4", "65536x1"], metavar="CONTEXTxBATCH")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--recompute", action="store_true", help="moba-js keeps only layer inputs for the backward pass")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args()
    command = moba_command(options.moba)
    config = Config()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    results = []
    for context, batch in map(parse_case, options.cases):
        peer = tried(lambda: in_child(tried_peer, config, context, batch, options.steps, options.seed))
        ours = tried(lambda: moba_case(command, context, batch, options))
        results.append({"context": context, "batch": batch, "peer": peer, "moba": ours})
        print(f"{context} x {batch} done", file=sys.stderr)
    print("\ntraining of the 340M model, bf16: moba-js with MoBA (B = 128, k = 8), PyTorch with dense attention")
    head = ["context", "batch", "moba ms", "tokens/s", "of peak", "host ms", "PyTorch ms", "tokens/s", "of peak", "ratio"]
    print_table([head, *map(row_of, results)])
    for result in results:
        for name, side in (("PyTorch", result["peer"]), ("moba", result["moba"])):
            if "reason" in side:
                print(f"{name} at {result['context']} x {result['batch']}: {side['reason']}")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2))
    sys.exit(1 if any("reason" in side for result in results for side in (result["peer"], result["moba"])) else 0)


if __name__ == "__main__":
    main()
