#!/usr/bin/env python3
"""Dense attention of this machine's PyTorch (cuDNN and FlashAttention-2) beside moba-js, in one table.

    python3 tools/peers/attention.py [--moba PATH] [--cases 8192x2 65536x2 ...] [--decode 1048576x1 ...]
    python3 tools/peers/attention.py --backward [--moba PATH] [--cases 8192x2 65536x2 ...]

Both run on the same GPU with the same shapes, one after the other: PyTorch here, moba-js by its own command
(`moba bench attention` and `moba bench decode`, which check their results before they time them). Times are medians of
device time, of 7 samples, after 100 ms of runs that are not counted; each sample times as many runs in a row as take
30 ms. Where one run of PyTorch takes more than half a second there are 3 samples, and a line below the table says so.
Ratios are PyTorch's time divided by moba-js's. With `--backward` a run is the forward pass and the gradients of q, k and
v. Memory is the most beyond the inputs, results included.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

PEERS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FA2": SDPBackend.FLASH_ATTENTION}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
SAMPLE_MILLISECONDS = 30
WARM_RUNS, WARM_MILLISECONDS, MOST_WARM_RUNS = 3, 100, 500  # as apps/cli/src/timing.ts has them
LONG_MILLISECONDS = 500
LONG_REPEATS = 3
FORWARD_CASES = ["8192x2", "16384x2", "32768x2", "65536x2", "131072x2", "262144x1", "524288x1"]
BACKWARD_CASES = FORWARD_CASES[:-1]
DECODE_CASES = ["1048576x1", "65536x64"]


def measure(run, repeats):
    """Device milliseconds of `run`, which was run before, sample by sample."""

    def sample(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(runs):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / runs

    warm = [sample(1)]
    while warm[-1] < WARM_MILLISECONDS and len(warm) < MOST_WARM_RUNS:
        if len(warm) >= WARM_RUNS and sum(warm) >= WARM_MILLISECONDS:
            break
        warm.append(sample(1))
    once = warm[-1]
    if once > LONG_MILLISECONDS:
        return [once, *(sample(1) for _ in range(min(repeats, LONG_REPEATS) - 1))]
    runs = max(1, min(100, round(SAMPLE_MILLISECONDS / once)))
    return [sample(runs) for _ in range(repeats)]


def captured(run):
    """The same as one launch of a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peak_memory(run):
    """The most bytes that `run` holds beyond what was there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_peers(shape, queries, tokens, batch, graph):
    """Milliseconds of each peer's samples, or the reason why it does not run, and the bytes that those that run hold at most."""

    def rows(count, heads):
        # As moba-js has it in memory: [batch, tokens, heads, d].
        size = (batch, count, heads, shape.head_dim)
        return torch.randn(size, device="cuda", dtype=DTYPES[shape.dtype]).transpose(1, 2)

    def run():
        out = scaled_dot_product_attention(q, k, v, **options)
        if shape.backward:
            torch.autograd.grad(out, (q, k, v), d_out)

    times, memory = {}, {}
    try:
        kv_heads = shape.kv_heads or shape.heads
        q, k, v = rows(queries, shape.heads), rows(tokens, kv_heads), rows(tokens, kv_heads)
        options = {"is_causal": queries > 1, "enable_gqa": kv_heads != shape.heads}
        if shape.backward:
            d_out = rows(queries, shape.heads)
            for tensor in (q, k, v):
                tensor.requires_grad_()
    except RuntimeError as error:
        return {name: str(error).splitlines()[0] for name in shape.peers}, memory
    for name in shape.peers:
        try:
            with sdpa_kernel(PEERS[name]):
                memory[name] = peak_memory(run)
                times[name] = measure(captured(run) if graph else run, shape.repeats)
        except RuntimeError as error:
            times[name] = str(error).splitlines()[0]
    return times, memory


def moba_command(path):
    """How moba-js is started: a script, or a built command-line program that Node runs."""
    here = Path(__file__).resolve().parent
    candidates = [path] if path else [here.parent / "moba", here.parent.parent / "apps/cli/dist/main.js"]
    for candidate in map(Path, candidates):
        if candidate.exists():
            return ["node", str(candidate)] if candidate.suffix == ".js" else [str(candidate.resolve())]
    sys.exit(f"no moba command at {' or '.join(map(str, candidates))}: name it with --moba")


def run_moba(command, arguments):
    """The case that a `moba bench …` of one case reports."""
    finished = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if finished.stdout:
        return json.loads(finished.stdout)["cases"][0]
    print(f"moba {' '.join(arguments)} failed:\n{finished.stderr}", file=sys.stderr)
    said = finished.stderr.strip().splitlines()
    raise RuntimeError(said[-1].removeprefix("moba: ") if said else f"moba ended with {finished.returncode}")


def tried(run):
    """What `run` returns, or why it failed."""
    try:
        return run()
    except (RuntimeError, ImportError, ValueError) as error:
        return {"reason": (str(error) or type(error).__name__).splitlines()[0]}


def moba_case(command, benchmark, shape, tokens, batch):
    """The result of one case of `moba bench …`."""
    arguments = [
        *("bench", benchmark, "--backend", "cuda", "--json", "--no-dense", "--repeats", str(shape.repeats)),
        *("--tokens", str(tokens), "--batch", str(batch), "--heads", str(shape.heads), "--dim", str(shape.head_dim)),
        *("--kv-heads", str(shape.kv_heads or shape.heads), "--dtype", shape.dtype, "--seed", str(shape.seed)),
        *("--block-size", str(shape.block_size), "--top-k", str(shape.top_k)),
        *(["--backward"] if shape.backward else []),
    ]
    return run_moba(command, arguments)


def parse_case(text):
    tokens, _, batch = text.partition("x")
    return int(tokens), int(batch or 1)


def milliseconds(value):
    return f"{value:.4f}" if isinstance(value, float) and value < 1 else f"{value:.2f}" if value else "-"


def print_table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def passed(result):
    """Whether moba-js ran, and what it computed is right."""
    return result["moba"].get("check", {}).get("passed", False)


def compare(options, command, benchmark, cases):
    """Runs all cases of one benchmark, prints their table and returns them."""
    decoding = benchmark == "decode"
    results = []
    for tokens, batch in cases:
        queries = 1 if decoding else tokens
        with_peers = decoding or tokens <= options.peers_up_to
        times, held = measure_peers(options, queries, tokens, batch, decoding) if with_peers else ({}, {})
        torch.cuda.empty_cache()
        ours = tried(lambda: moba_case(command, benchmark, options, tokens, batch))
        results.append({"tokens": tokens, "batch": batch, "peers": times, "peerMemory": held, "moba": ours})
        print(f"{benchmark} {tokens} x {batch} done", file=sys.stderr)
    passes = "forward + backward" if options.backward else "forward"
    kv_heads = options.kv_heads or options.heads
    print(
        f"\n{'one decoding step' if decoding else f'{passes}, causal, routing included'}: H = {options.heads}, "
        f"Hkv = {kv_heads}, d = {options.head_dim}, B = {options.block_size}, k = {options.top_k}, {options.dtype}"
    )
    stage = "forwardBackward" if options.backward else "moba"
    memory_of = [] if decoding else options.peers
    head = ["N", "batch", "moba ms", *(f"{name} ms" for name in options.peers)]
    head += [f"{name} / moba" for name in options.peers]
    rows = [[*head, "of roofline", "moba MiB", *(f"{name} MiB" for name in memory_of)]]
    for result in results:
        ours, times = result["moba"], result["peers"]
        moba = ours.get("median", {}).get(stage)
        peers = [statistics.median(times[name]) if isinstance(times.get(name), list) else None for name in options.peers]
        share = ours.get("roofline", {}).get(stage)
        peer_memory = [result["peerMemory"].get(name) for name in memory_of]
        memory = [ours.get("memory", {}).get("peakBeyondInputs"), *peer_memory]
        rows.append(
            [
                str(result["tokens"]),
                str(result["batch"]),
                milliseconds(moba),
                *map(milliseconds, peers),
                *(f"{peer / moba:.2f}" if peer and moba else "-" for peer in peers),
                f"{100 * share:.0f} %" if share else "-",
                *(f"{held / 2**20:.0f}" if held else "-" for held in memory),
            ]
        )
    print_table(rows)
    for result in results:
        if not passed(result):
            print(f"moba at {result['tokens']} x {result['batch']}: {result['moba'].get('reason', 'its check failed')}")
        for name, samples in result["peers"].items():
            if isinstance(samples, str):
                print(f"{name} at {result['tokens']} x {result['batch']}: {samples}")
            elif len(samples) < options.repeats:
                spread = max(samples) / min(samples) - 1
                print(f"{name} at {result['tokens']} x {result['batch']}: {len(samples)} samples, {100 * spread:.1f} % apart")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moba", help="the moba command: a script, or apps/cli/dist/main.js")
    parser.add_argument("--backward", action="store_true", help="forward + backward instead of forward; no decoding")
    parser.add_argument("--cases", nargs="*", metavar="NxBATCH", help="of whole sequences")
    parser.add_argument("--decode", nargs="*", metavar="NxBATCH", help="of one decoding step")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, help="as many as heads, when not given")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers-up-to", type=int, default=262144, help="tokens of the peers' longest sequence")
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args()
    if options.backward and options.decode:
        parser.error("a decoding step has no backward pass")
    if options.cases is None:
        options.cases = BACKWARD_CASES if options.backward else FORWARD_CASES
    if options.decode is None:
        options.decode = [] if options.backward else DECODE_CASES
    command = moba_command(options.moba)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    torch.manual_seed(options.seed)
    results = {}
    for benchmark, cases in (("attention", options.cases), ("decode", options.decode)):
        if cases:
            results[benchmark] = compare(options, command, benchmark, [parse_case(case) for case in cases])
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2))
    sys.exit(0 if all(passed(case) for cases in results.values() for case in cases) else 1)


if __name__ == "__main__":
    main()
