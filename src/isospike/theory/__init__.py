"""Statements about spiking networks, with their proofs or counterexamples, tests and verdicts.

A statement is a function whose docstring has the fields *Claim*, *Assumes*, *Source*, *Test* and
*Verdict*. Nothing here is needed to run a port.

``laws``           error and steps of a code; lower bounds for every decoder
``steps``          the best code and number of steps for an error
``softmax``        circuits for softmax and exp
``approximation``  universal approximation, built on a toy
``equivalence``    spike times and positions
"""
