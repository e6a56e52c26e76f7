"""The parts of ``scripts/pretrain_embedded.py``: captions, pictures in memory, network, optimiser, export."""
