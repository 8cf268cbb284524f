"""Reinforcement learning in the engine with bridged policies."""
