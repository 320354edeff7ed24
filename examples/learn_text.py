"""Learn a text in one pass, symbol by symbol, beside a back-off n-gram model."""

from isospike import SequenceMachine
from isospike.data import shakespeare
from isospike.memory import BackoffNgram


def main() -> None:
    text = shakespeare()[:8000]
    machine = SequenceMachine(grow=True)
    ngram = BackoffNgram(order=5)
    right = {"sequence machine": 0, "n-gram of order 5": 0}
    for symbol in text:  # each predicts the symbol, then learns it
        right["sequence machine"] += machine.predict().symbol == symbol
        machine.learn(symbol)
        right["n-gram of order 5"] += ngram.predict() == symbol
        ngram.learn(symbol)
    for name, count in right.items():
        print(f"{name}: {count / len(text):.1%} right at first sight")
    print("".join(machine.generate("What say ", 60)))
    machine.save("out/example-machine.safetensors")


if __name__ == "__main__":
    main()
