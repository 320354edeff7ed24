"""Circuits of spiking neurons that a port can run in place of float functions.

``digits``      signed digits of a membrane
``few_spike``   one neuron that computes a scalar function with a few spikes
``integers``    the same in whole numbers
``arithmetic``  products, exp2, reciprocal, softmax and layer norm, stepped and collapsed
``softcap``     a bound of scores
"""
