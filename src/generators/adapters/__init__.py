"""Adapters: small trained changes of the linear layers of stages."""
