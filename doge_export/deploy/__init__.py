"""Laying out a bundle or an engine for a server of somebody else's: Triton Inference Server."""

from doge_export.deploy.repository import BACKENDS, Deployment, deploy_triton

__all__ = ["BACKENDS", "Deployment", "deploy_triton"]
