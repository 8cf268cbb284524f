"""An adapter of a third party."""

import numpy as np

import gradbridge as gb


class ByHand(gb.Adapter):
    """Of a third party: written by hand, without anything that is optional."""

    label = "by hand"

    def __init__(self, size):
        self.layout = gb.ParameterLayout(("w",), ((size,),), ("float64",))

    def weights(self):
        return [np.ones(self.layout.shapes[0])]

    def model(self, weights):
        return weights

    def update(self, weights):
        return weights

    def forward(self, loaded, inputs, spec, wrt):
        return inputs[0] @ loaded[0], (loaded[0], inputs[0])

    def backward(self, residuals, cotangents, wrt):
        w, x = residuals
        return [cotangents[0] @ x if i == 0 else np.outer(cotangents[0], w) for i in wrt]
