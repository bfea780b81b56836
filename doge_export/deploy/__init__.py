"""Model repositories for Triton Inference Server, of a bundle or an engine."""

from doge_export.deploy.repository import BACKENDS, Deployment, deploy_triton

__all__ = ["BACKENDS", "Deployment", "deploy_triton"]
