"""One file, one claim: CLAIM, run(...) -> Result, holds(Result)."""
