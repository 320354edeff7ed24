"""Port a sentence model to spikes, save the port, and search with it."""

import isospike
from isospike.data import calibration_texts
from isospike.hf.load import load

SENTENCES = [
    "A man is playing a guitar.",
    "Somebody makes music on a string instrument.",
    "The stock market fell by two percent.",
    "Shares lost value today.",
]


def main() -> None:
    source = load("minilm")  # or a folder, or a name on the Hugging Face hub
    batches = source.batches(calibration_texts()[:40])
    port = isospike.port(source.model, batches, steps=8)
    print(port.report.verdict())

    port.save("out/example", tokenizer=source.tokenizer)
    on_spikes = isospike.embed("out/example", SENTENCES)
    likeness = on_spikes @ on_spikes.T  # embeddings have length 1
    likeness.fill_diagonal_(-1)  # not itself
    for sentence, nearest in zip(SENTENCES, likeness.argmax(1).tolist(), strict=True):
        print(f"{sentence}  ->  {SENTENCES[nearest]}")


if __name__ == "__main__":
    main()
