"""RMSNorm. Exported as ONNX's RMSNormalization, which normalises in float32 and scales in the model's
dtype, as the reference does; torch's own rounds once less in half precision."""

import torch

__all__ = ["RMSNorm"]


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis [..., size]."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.epsilon)
