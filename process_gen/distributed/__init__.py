"""Devices, sharding and hosts."""
