"""Systems: building compatible parts from a plan, generating audio, saving and loading.

Training a system belongs in ``training``, measuring it in ``evaluation``.
"""
