"""Classes of five methods over a small torch network, and what its gradients are."""

import autograd.numpy as np
import numpy as onp
import torch
from autograd import grad
from torch import nn

from gradbridge_seldonian import SupervisedPytorchBaseModel

X = onp.random.default_rng(0).normal(size=(6, 3))
THETA = onp.linspace(-1.0, 1.0, 11)


class Net(SupervisedPytorchBaseModel):
    def create_model(self, **kwargs):
        return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), nn.Flatten(0))


def variant(base=Net, **methods):
    return type("Variant", (base,), methods)


def gradient(cls, theta=THETA):
    model = cls("cpu")
    return grad(lambda t: np.sum(model.predict(t, X) ** 2))(theta)


def truth(theta):
    def loss(t):
        h = np.tanh(X @ t[:6].reshape(2, 3).T + t[6:8])
        return np.sum((h @ t[8:10] + t[10]) ** 2)

    return grad(loss)(theta)


class Tutorial(Net):
    """The tutorial's five methods."""

    def update_model_params(self, theta, **kwargs):
        nn.utils.vector_to_parameters(torch.from_numpy(theta).float(), self.pytorch_model.parameters())

    def zero_gradients(self):
        for p in self.pytorch_model.parameters():
            if p.grad is not None:
                p.grad.zero_()

    def forward_pass(self, X, **kwargs):
        return self.pytorch_model(torch.tensor(X).float())

    def backward_pass(self, external_grad):
        self.predictions.backward(gradient=external_grad, retain_graph=True)
        return torch.cat([p.grad.view(-1) for p in self.pytorch_model.parameters()])
